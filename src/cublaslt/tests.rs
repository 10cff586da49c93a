//! cuBLASLt without a card: a driver whose memory is the host's and a library of C that multiplies
//! there (tests/cuda/null_cuda.c, tests/cuda/cublaslt.c).

use sppo_training::config::Matmul;

use super::refuse;

#[test]
fn cublaslt_is_refused_where_there_is_no_cuda() {
    assert!(refuse(Matmul::Auto).is_ok());
    assert!(refuse(Matmul::Cubecl).is_ok());
    let error = refuse(Matmul::Cublaslt).unwrap_err();
    assert_eq!(crate::errors::exit_code(&error), 2);
    let said = error.to_string();
    assert!(
        said.starts_with("matmul \"cublaslt\": cuBLASLt is for CUDA cards; "),
        "{said}"
    );
}

#[cfg(all(feature = "cuda", feature = "flex"))]
mod on_a_driver_without_a_card {
    use std::path::Path;
    use std::process::{Command, Output};

    use burn::tensor::backend::Backend;
    use burn::tensor::{DType, Tensor, TensorData};
    use burn_cuda::{Cuda, CudaDevice};
    use burn_flex::Flex;
    use cubecl::cuda::CudaRuntime;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use sppo_model::ops::{ModelOps, linear_products};
    use tempfile::TempDir;

    use super::super::enable;
    use super::super::library::VARIABLE;
    use super::*;

    type OnCard = Cuda<f32, i32>;
    type OnHost = Flex<f32, i32>;

    /// Two drivers and the library.
    struct Fixture(TempDir);

    impl Fixture {
        fn new() -> Self {
            let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
            let folder = TempDir::new().unwrap();
            for (driver, flag) in [("new", "-DNEW"), ("old", "-DBEFORE_12_5")] {
                let driver = folder.path().join(driver);
                std::fs::create_dir(&driver).unwrap();
                compile(
                    &sources.join("null_cuda.c"),
                    &driver.join("libcuda.so.1"),
                    flag,
                );
                std::os::unix::fs::symlink("libcuda.so.1", driver.join("libcuda.so")).unwrap();
            }
            let library = folder.path().join("libcublasLt.so.13");
            compile(&sources.join("cublaslt.c"), &library, "-DNEW");
            Self(folder)
        }

        /// Runs a test in a process of its own.
        fn run(&self, driver: &str, test: &str, variables: &[(&str, &str)]) -> Output {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let test = format!("cublaslt::tests::on_a_driver_without_a_card::{test}");
            command.args(["--exact", &test, "--ignored", "--nocapture"]);
            let mut places = vec![self.0.path().join(driver)];
            let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            places.extend(std::env::split_paths(&others));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(places).unwrap());
            command.env(VARIABLE, self.0.path().join("libcublasLt.so.13"));
            command.env("NULLCUDA_LATE", "1");
            command.envs(variables.iter().copied());
            command.output().unwrap()
        }
    }

    fn compile(source: &Path, library: &Path, flag: &str) {
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-shared", "-fPIC", "-O1", flag, "-o"]);
        command.arg(library).arg(source).args(["-ldl", "-lpthread"]);
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?}: {said}");
    }

    fn text(output: &Output) -> String {
        let parts = [&output.stdout, &output.stderr];
        parts
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .concat()
    }

    #[test]
    fn products_are_those_of_flex() {
        let output = Fixture::new().run("new", "all_products", &[]);
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        assert!(!text.contains("refuses"), "{text}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let fixture = Fixture::new();
        let said = |driver, variables: &[(&str, &str)]| {
            let output = fixture.run(driver, "refused", variables);
            let text = text(&output);
            assert!(output.status.success(), "{text}");
            let line = text.lines().find(|line| line.contains("said: "));
            line.unwrap_or_else(|| panic!("{text}")).to_owned()
        };
        let old = said("old", &[]);
        assert!(old.contains("driver is older than CUDA 12.5"), "{old}");
        let none = said("new", &[(VARIABLE, "/nowhere/libcublasLt.so.13")]);
        let expected =
            "matmul \"cublaslt\": SPPO_CUBLASLT: /nowhere/libcublasLt.so.13 cannot be loaded: ";
        assert!(none.contains(expected), "{none}");
        assert!(none.contains("; install the CUDA toolkit, or "), "{none}");
        let other = fixture.0.path().join("new/libcuda.so.1");
        let other = said("new", &[(VARIABLE, other.to_str().unwrap())]);
        let expected = "is no cuBLASLt that can be used: it has no cublasLtGetVersion; ";
        assert!(other.contains(expected), "{other}");
        let unset = said("new", &[(VARIABLE, "")]);
        for name in ["libcublasLt.so.13", "libcublasLt.so.12"] {
            assert!(
                unset.contains(&format!("{name} cannot be loaded: ")),
                "{unset}"
            );
        }
        for (fails, name) in [
            ("create", "CUBLAS_STATUS_NOT_INITIALIZED (1)"),
            ("choose", "CUBLAS_STATUS_NOT_SUPPORTED (15), for Kind "),
            ("call", "CUBLAS_STATUS_EXECUTION_FAILED (13)"),
        ] {
            let said = said("new", &[("FAKE_CUBLASLT_FAILS", fails)]);
            let expected = format!(" cannot be used: {name}");
            assert!(said.contains("cuBLASLt 13.1.0 (/"), "{said}");
            assert!(said.contains(&expected), "{said}");
        }
        // Nothing is computed, so that the result is what was in memory.
        let wrong = said("new", &[("FAKE_CUBLASLT_CHECKS", "1")]);
        assert!(
            wrong.contains("it computes wrongly: a small product of F32"),
            "{wrong}"
        );
    }

    #[test]
    #[ignore = "one of many processes"]
    fn refused() {
        let error = enable(Matmul::Cublaslt, &CudaDevice::new(0)).unwrap_err();
        assert_eq!(crate::errors::exit_code(&error), 2);
        println!("said: {error:#}");
        assert!(linear_products::<CudaRuntime>().is_none());
    }

    /// A layer's input, weight and gradient by its output, in the order of their memory.
    struct Layer {
        rows: usize,
        inputs: usize,
        outputs: usize,
        dtype: DType,
        values: [Vec<f32>; 3],
    }

    impl Layer {
        fn new(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> Self {
            let mut random =
                StdRng::seed_from_u64((rows * 1_000_000 + inputs * 1000 + outputs) as u64);
            let mut draw = |count: usize| {
                let one = |_| random.random_range(-1.0f32..1.0);
                (0..count).map(one).collect::<Vec<f32>>()
            };
            Self {
                rows,
                inputs,
                outputs,
                dtype,
                values: [
                    draw(rows * inputs),
                    draw(outputs * inputs),
                    draw(rows * outputs),
                ],
            }
        }

        fn tensors<B: Backend>(&self, device: &B::Device) -> [Tensor<B, 2>; 3] {
            let shapes = [
                [self.rows, self.inputs],
                [self.outputs, self.inputs],
                [self.rows, self.outputs],
            ];
            let mut both = shapes.into_iter().zip(&self.values);
            [(); 3].map(|()| {
                let (shape, values) = both.next().unwrap();
                let data = TensorData::new(values.clone(), shape).convert_dtype(self.dtype);
                Tensor::from_data(data, (device, self.dtype))
            })
        }

        /// Output, gradients by input and by weight; all with factors that lie the other way, too.
        fn results(&self) -> Vec<Tensor<OnCard, 2>> {
            let [x, weight, grad] = self.tensors::<OnCard>(&CudaDevice::new(0));
            let [ours, theirs] = [false, true].map(|turned| {
                // What lies column after column, with the same values.
                let way = |tensor: &Tensor<OnCard, 2>| match turned {
                    false => tensor.clone(),
                    true => {
                        let data = host_turned(tensor.clone());
                        Tensor::from_data(data, (&tensor.device(), self.dtype)).transpose()
                    }
                };
                let (x, weight, grad) = (way(&x), way(&weight), way(&grad));
                [
                    OnCard::linear_layer(x.clone(), weight.clone(), None),
                    OnCard::linear_layer_input_gradient(grad.clone(), weight),
                    OnCard::linear_layer_weight_gradient(grad, x),
                ]
            });
            ours.into_iter().chain(theirs).collect()
        }

        /// The first three by Flex, in f32.
        fn expected(&self) -> [Vec<f32>; 3] {
            let [x, weight, grad] = self
                .tensors::<OnHost>(&Default::default())
                .map(|tensor| tensor.cast(DType::F32));
            let results = [
                x.clone().matmul(weight.clone().transpose()),
                grad.clone().matmul(weight),
                grad.transpose().matmul(x),
            ];
            results.map(|tensor| tensor.into_data().into_vec::<f32>().unwrap())
        }
    }

    /// The values of the turned tensor, end to end.
    fn host_turned(tensor: Tensor<OnCard, 2>) -> TensorData {
        let [rows, columns] = tensor.dims();
        let dtype = tensor.dtype();
        let values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
        let turned = (0..rows * columns).map(|i| values[i % rows * columns + i / rows]);
        TensorData::new(turned.collect::<Vec<f32>>(), [columns, rows]).convert_dtype(dtype)
    }

    #[test]
    #[ignore = "in a process of its own"]
    fn all_products() {
        enable(Matmul::Cublaslt, &CudaDevice::new(0)).unwrap();
        assert!(linear_products::<CudaRuntime>().is_some());
        for [rows, inputs, outputs] in [
            [1, 1, 1],
            [1, 64, 33],
            [5, 1, 7],
            [7, 5, 3],
            [33, 129, 65],
            [64, 128, 96],
            [200, 96, 257],
        ] {
            for dtype in [DType::F32, DType::BF16] {
                let layer = Layer::new(rows, inputs, outputs, dtype);
                let expected = layer.expected();
                // Nothing is read before all is started.
                let results = layer.results();
                for (i, result) in results.into_iter().enumerate() {
                    let weight_gradient = i % 3 == 2;
                    let expected_dtype = if weight_gradient { DType::F32 } else { dtype };
                    assert_eq!(result.dtype(), expected_dtype);
                    let found: Vec<f32> = result.into_data().iter::<f32>().collect();
                    let expected = &expected[i % 3];
                    let largest = expected.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                    // Half a step of bf16 where the result is rounded to it.
                    let rounding = if expected_dtype == DType::BF16 {
                        0.004
                    } else {
                        1e-5
                    };
                    assert_eq!(found.len(), expected.len());
                    for (place, (a, b)) in found.iter().zip(expected).enumerate() {
                        assert!(
                            (a - b).abs() <= rounding * largest,
                            "{rows} x {inputs} x {outputs}, {dtype:?}, result {i}, {place}: {a} instead of {b}"
                        );
                    }
                }
            }
        }
    }
}
