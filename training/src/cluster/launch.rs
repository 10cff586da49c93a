//! What the launcher of a job says in the environment.

/// Variables that hold the number of processes that were started together, and their launchers.
const SIZES: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_SIZE", "an mpiexec of MPICH or Intel MPI"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
];

/// Variables that hold the number of a process among them, in the order of [`SIZES`].
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];

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

/// Which of the launcher's processes this is, from 0; known before MPI is.
pub fn rank() -> usize {
    rank_of(|name| std::env::var(name).ok())
}

fn rank_of(get: impl Fn(&str) -> Option<String>) -> usize {
    let ranks = SIZES.iter().zip(RANKS);
    let mut known = ranks.filter(|((size, _), _)| get(size).is_some());
    let rank = known.next().and_then(|(_, variable)| get(variable));
    rank.and_then(|rank| rank.trim().parse().ok()).unwrap_or(0)
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
    fn the_rank_is_that_of_the_launcher_that_counts() {
        let of = |variables: &[(&str, &str)]| {
            let found = |name: &str| variables.iter().find(|(n, _)| *n == name);
            rank_of(|name| found(name).map(|(_, value)| value.to_string()))
        };
        assert_eq!(of(&[]), 0);
        let slurm = [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "3")];
        assert_eq!(of(&slurm), 3);
        let mpirun = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "1")];
        assert_eq!(of(&[slurm, mpirun].concat()), 1);
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
