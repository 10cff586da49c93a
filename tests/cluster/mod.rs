//! Runs of many processes, which `mpirun` starts.

#[cfg(not(feature = "mpi"))]
mod without_mpi;

#[cfg(feature = "mpi")]
mod failures;
#[cfg(feature = "mpi")]
mod refused;
#[cfg(feature = "mpi")]
mod run;
#[cfg(feature = "mpi")]
mod training;
