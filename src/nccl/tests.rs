//! NCCL without a card: libraries of C that say they are NCCL, and a driver whose memory is the
//! host's (tests/fixtures/cluster, tests/cuda/null_cuda.c).

use std::path::{Path, PathBuf};
use std::process::Command;

use sppo_training::config::{Cluster, Reduce};
use tempfile::TempDir;

use super::agree::{Found, agreed};
use super::library::{Given, VARIABLE, find, given};
use super::refuse_of;

/// Compiles a library.
fn compile(compiler: &str, source: &Path, library: &Path, flags: &[&str]) {
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-o"]);
    command.arg(library).arg(source).args(flags);
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// What is said of a library of this source.
fn said_of(source: &str) -> String {
    let folder = TempDir::new().unwrap();
    let (c, library) = (folder.path().join("a.c"), folder.path().join("libnccl.so"));
    std::fs::write(&c, source).unwrap();
    compile("cc", &c, &library, &[]);
    said_of_path(&library).replace(library.to_str().unwrap(), "LIBRARY")
}

fn said_of_path(path: &Path) -> String {
    let given = Given {
        name: VARIABLE,
        path: path.into(),
    };
    match find(Some(&given)) {
        Ok(library) => format!("{library:?}"),
        Err(error) => error,
    }
}

const NAMES: [&str; 8] = [
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclGetUniqueId",
    "ncclCommInitRankConfig",
    "ncclCommGetAsyncError",
    "ncclCommAbort",
    "ncclReduceScatter",
    "ncclAllGather",
];

fn source(version: &str, names: &[&str]) -> String {
    let functions = names
        .iter()
        .map(|name| format!("int {name}() {{ return 3; }}\n"));
    format!("int ncclGetVersion(int *out) {{ {version} }}\n") + &functions.collect::<String>()
}

#[test]
fn a_library_says_its_version_and_path() {
    let of = |code: u32| said_of(&source(&format!("*out = {code}; return 0;"), &NAMES));
    assert_eq!(of(22803), "NCCL 2.28.3 (LIBRARY)");
    assert_eq!(of(21400), "NCCL 2.14.0 (LIBRARY)");
}

#[test]
fn a_missing_library_is_said_with_where_it_was_given() {
    let said = said_of_path(Path::new("/nowhere/libnccl.so.2"));
    let expected = "SPPO_NCCL: /nowhere/libnccl.so.2 cannot be loaded: ";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.contains("No such file"), "{said}");
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("libnccl.so");
    std::fs::write(&text, "no library").unwrap();
    assert!(said_of_path(&text).contains(" cannot be loaded: "));
}

#[test]
fn without_a_path_both_names_are_tried() {
    if let Err(said) = find(None) {
        assert!(
            said.starts_with("libnccl.so.2 cannot be loaded: "),
            "{said}"
        );
        assert!(said.contains("; libnccl.so cannot be loaded: "), "{said}");
    }
}

#[test]
fn an_old_library_is_refused() {
    // Which lacks functions, too.
    for (code, version) in [("21003", "2.10.3"), ("2804", "2.8.4"), ("21399", "2.13.99")] {
        let said = said_of(&source(&format!("*out = {code}; return 0;"), &[]));
        let expected = format!(
            "SPPO_NCCL: LIBRARY is NCCL {version}, which is too old: 2.14.0 is the first that can \
             be used"
        );
        assert_eq!(said, expected);
    }
}

#[test]
fn a_broken_library_is_refused() {
    let lacks = "SPPO_NCCL: LIBRARY is no NCCL that can be used: it has no ";
    assert_eq!(said_of("int a;"), format!("{lacks}ncclGetVersion"));
    let good = "*out = 22803; return 0;";
    let said = said_of(&source(good, &NAMES[..7]));
    assert_eq!(said, format!("{lacks}ncclAllGather"));
    let said = said_of(&source("return 2;", &NAMES));
    let expected = "SPPO_NCCL: LIBRARY does not work: ncclGetVersion gives error 2";
    assert_eq!(said, expected);
}

#[test]
fn the_key_goes_before_the_variable() {
    let key = PathBuf::from("/a");
    let of = |key, variable: Option<&str>| {
        given(key, variable.map(Into::into)).map(|Given { name, path }| (name, path))
    };
    assert_eq!(of(None, None), None);
    assert_eq!(of(None, Some("")), None);
    assert_eq!(of(None, Some("/b")), Some(("SPPO_NCCL", "/b".into())));
    assert_eq!(
        of(Some(&key), Some("/b")),
        Some(("cluster.nccl", "/a".into()))
    );
}

fn found(host: &str, version: Result<&str, &str>, needed: bool) -> Found {
    Found {
        host: host.into(),
        version: version.map(Into::into).map_err(Into::into),
        needed,
    }
}

#[test]
fn all_ranks_have_one_version_or_none_has_any() {
    let new = found("node1", Ok("2.28.3"), false);
    let old = found("node2", Ok("2.21.5"), false);
    let none = found("node2", Err("libnccl.so.2 cannot be loaded"), false);
    assert_eq!(agreed(&[new.clone(), new.clone()]), Ok(true));
    assert_eq!(agreed(&[none.clone(), none.clone()]), Ok(false));
    let said = agreed(&[new.clone(), new.clone(), old]).unwrap_err();
    let expected = "rank 2 (node2): NCCL differs from rank 0's (node1): 2.21.5 / 2.28.3; all ranks \
                    need the same; to install NCCL: pip install nvidia-nccl-cu13 ";
    assert!(said.starts_with(expected), "{said}");
    let said = agreed(&[new.clone(), none]).unwrap_err();
    let expected = "rank 1 (node2): NCCL differs from rank 0's (node1): none (libnccl.so.2 cannot \
                    be loaded) / 2.28.3; ";
    assert!(said.starts_with(expected), "{said}");
    let needed = found("node2", Err("SPPO_NCCL: /a cannot be loaded"), true);
    let said = agreed(&[new, needed]).unwrap_err();
    let expected = "rank 1 (node2): SPPO_NCCL: /a cannot be loaded; to install NCCL: ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn nccl_is_refused_where_there_is_no_cuda() {
    let mut cluster = Cluster::default();
    assert!(refuse_of(&cluster, 2).is_ok());
    cluster.reduce = Some(Reduce::Nccl);
    // Alone, [cluster] has nothing to do.
    assert!(refuse_of(&cluster, 1).is_ok());
    let error = refuse_of(&cluster, 2).unwrap_err();
    assert_eq!(crate::errors::exit_code(&error), 2);
    assert!(
        error
            .to_string()
            .starts_with("cluster.reduce = \"nccl\": NCCL is for CUDA")
    );
}

/// Between processes: needs mpirun and mpicc.
#[cfg(all(feature = "cuda", feature = "mpi"))]
mod between_ranks {
    use std::process::Output;

    use burn::tensor::{Tensor, TensorData};
    use half::bf16;
    use sppo_training::cluster::{self, Communicator, Mpi, transport, world};

    use super::super::connect;
    use super::super::transport::Backend;
    use super::*;

    /// Two drivers, and NCCL's functions over MPI.
    struct Fixture(TempDir);

    impl Fixture {
        fn new() -> Self {
            let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
            let folder = TempDir::new().unwrap();
            for (driver, flags) in [("new", &[][..]), ("old", &["-DBEFORE_12_5"])] {
                let driver = folder.path().join(driver);
                std::fs::create_dir(&driver).unwrap();
                let library = driver.join("libcuda.so.1");
                compile("cc", &tests.join("cuda/null_cuda.c"), &library, flags);
                std::os::unix::fs::symlink("libcuda.so.1", driver.join("libcuda.so")).unwrap();
            }
            let library = folder.path().join("nccl.so");
            let source = tests.join("fixtures/cluster/nccl_over_mpi.c");
            compile("mpicc", &source, &library, &[]);
            Self(folder)
        }

        /// Runs a rank's test in each of several processes.
        fn run(&self, ranks: usize, driver: &str, test: &str, fails: &str) -> Output {
            let mut command = Command::new("timeout");
            command.args([
                "-k",
                "5",
                "120",
                "mpirun",
                "--oversubscribe",
                "--allow-run-as-root",
            ]);
            command.args(["--bind-to", "none", "-n", &ranks.to_string()]);
            command.arg(std::env::current_exe().unwrap());
            let test = format!("nccl::tests::between_ranks::{test}");
            command.args(["--exact", &test, "--ignored", "--nocapture"]);
            let mut places = vec![self.0.path().join(driver)];
            let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            places.extend(std::env::split_paths(&others));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(places).unwrap());
            command.env(VARIABLE, self.0.path().join("nccl.so"));
            command.env("FAKE_NCCL_FAILS", fails);
            command.env("NULLCUDA_LATE", "1");
            command.output().unwrap()
        }
    }

    fn text(output: &Output) -> String {
        let parts = [&output.stdout, &output.stderr];
        parts
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .concat()
    }

    #[test]
    fn tensors_travel_between_ranks_with_either_way_of_waiting() {
        let fixture = Fixture::new();
        for driver in ["new", "old"] {
            for ranks in [2, 4] {
                let output = fixture.run(ranks, driver, "a_rank", "");
                let text = text(&output);
                assert!(output.status.success(), "{driver}, {ranks} ranks: {text}");
                assert_eq!(text.matches("1 passed").count(), ranks, "{text}");
            }
        }
    }

    #[test]
    fn what_nccl_says_of_a_failure_ends_the_job() {
        let fixture = Fixture::new();
        for driver in ["new", "old"] {
            for (fails, what) in [
                ("call", "unhandled system error (2)"),
                ("peer", "remote process exited (6)"),
            ] {
                let output = fixture.run(2, driver, "a_rank", fails);
                let text = text(&output);
                let said = format!(
                    "error: NCCL failed: {what}: the cable is out; run the command again to go on"
                );
                assert!(text.contains(&said), "{driver}, {fails}: {text}");
                assert_eq!(output.status.code(), Some(1), "{driver}, {fails}: {text}");
            }
        }
    }

    /// Joins the job, with its card.
    fn join() -> &'static dyn Communicator {
        cluster::join(Box::new(Mpi::init().unwrap()));
        connect(&Cluster::default(), &burn_cuda::CudaDevice::new(0)).unwrap();
        world()
    }

    fn floats(of: impl Fn(usize) -> f32, count: usize) -> Tensor<Backend, 1> {
        let values: Vec<f32> = (0..count).map(of).collect();
        Tensor::from_data(TensorData::new(values, [count]), &Default::default())
    }

    fn halves(of: impl Fn(usize) -> f32, count: usize) -> Tensor<Backend, 1> {
        let values: Vec<bf16> = (0..count).map(|i| bf16::from_f32(of(i))).collect();
        let device = burn_cuda::CudaDevice::new(0);
        let data = TensorData::new(values, [count]);
        Tensor::from_data(data, (&device, burn::tensor::DType::BF16))
    }

    #[test]
    #[ignore = "one of many processes"]
    fn a_rank() {
        let world = join();
        let (rank, ranks) = (world.rank(), world.size());
        let way = transport::<Backend>().unwrap();
        let total = (ranks * (ranks - 1) / 2) as f32;
        for n in [5, 1 << 16] {
            // Two under way at a time, as the learner has; a third that nobody waits for.
            let sums = way.reduce_scatter(floats(|i| (1000 * rank + i % 999) as f32, ranks * n));
            let twice = way.reduce_scatter(floats(|i| (2 * rank + i % 7) as f32, ranks * n));
            drop(way.all_gather(floats(|i| i as f32, n)));
            let sums = sums();
            let expected = |i: usize| 1000.0 * total + (ranks * (i % 999)) as f32;
            let own: Vec<f32> = (rank * n..(rank + 1) * n).map(expected).collect();
            assert_eq!(sums.to_data().to_vec::<f32>().unwrap(), own);
            let expected = |i: usize| 2.0 * total + (ranks * (i % 7)) as f32;
            let own: Vec<f32> = (rank * n..(rank + 1) * n).map(expected).collect();
            let twice = twice().into_data().into_vec::<f32>().unwrap();
            assert_eq!(twice, own);

            // What came over goes on without a way through the host.
            let all = way.all_gather(sums)().into_data().into_vec::<f32>();
            let expected = |i: usize| 1000.0 * total + (ranks * (i % 999)) as f32;
            assert_eq!(
                all.unwrap(),
                (0..ranks * n).map(expected).collect::<Vec<_>>()
            );

            let of = |rank: usize, i: usize| (rank * 16 + i % 16) as f32;
            let weights = way.all_gather(halves(|i| of(rank, i), n))();
            assert_eq!(weights.dtype(), burn::tensor::DType::BF16);
            let weights = weights.into_data().into_vec::<bf16>().unwrap();
            let expected = (0..ranks * n).map(|i| bf16::from_f32(of(i / n, i % n)));
            assert_eq!(weights, expected.collect::<Vec<_>>());
        }
        let none = way.all_gather(floats(|_| 0.0, 0))();
        assert_eq!(none.dims(), [0]);
        world.barrier();
        Mpi::finalize();
    }
}
