//! What the launcher of a job says in the environment.

/// Variables that hold the number of processes that were started together, and their launchers.
const SIZES: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_SIZE", "an mpiexec of MPICH or Intel MPI"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
];

/// A launcher of several processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// What it is.
    pub name: &'static str,
    /// The variable that tells the number.
    pub variable: &'static str,
    /// How many processes it started.
    pub size: usize,
}

/// The launcher of this process, where it started more than one.
pub fn launcher() -> Option<Launcher> {
    launcher_of(|name| std::env::var(name).ok())
}

fn launcher_of(get: impl Fn(&str) -> Option<String>) -> Option<Launcher> {
    let sizes = SIZES.iter().filter_map(|&(variable, name)| {
        let size = get(variable)?.trim().parse().ok()?;
        Some(Launcher {
            name,
            variable,
            size,
        })
    });
    // mpirun within a step of srun is the one that counts.
    sizes.into_iter().next().filter(|found| found.size > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<(&'static str, usize)> {
        let get = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_string())
        };
        launcher_of(get).map(|found| (found.variable, found.size))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "1")]), None);
        let two = ("OMPI_COMM_WORLD_SIZE", "2");
        assert_eq!(of(&[two]), Some((two.0, 2)));
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "8")]).unwrap().1, 8);
        // mpirun that a step of one task started, and the other way round.
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "1"), two]).unwrap().1, 2);
        let one = ("OMPI_COMM_WORLD_SIZE", "1");
        assert_eq!(of(&[one, ("SLURM_STEP_NUM_TASKS", "4")]), None);
        // A batch script of Slurm runs once.
        assert_eq!(of(&[("SLURM_NTASKS", "8")]), None);
    }
}
