//! A build without the feature `mpi`.

use crate::cli::Place;

#[test]
fn many_processes_that_would_write_over_each_other_are_refused() {
    let place = Place::new();
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let output = place.command("run").env(variable, "2").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        for part in [variable, "=2", "libopenmpi-dev", "--features mpi"] {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
        assert!(place.tree().is_empty());
    }
}
