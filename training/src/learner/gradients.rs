//! Gradients gathered over parts of a batch, by place in the table of parameters.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::llama::parameters::{Group, ParameterVisitor, visit_parameters};
use sppo_model::ops::{DeviceError, ModelOps, to_f32};

/// Takes the gradients of a backward pass as they come.
pub trait GradientReceiver<B: Backend> {
    /// Adds a gradient, f32 `[n]`, to that of the parameter at `index` of the table.
    fn take(&mut self, index: usize, grad: Tensor<B, 1>);

    /// Nothing more comes for the parameters of `group` in this pass: the head's come first, the
    /// embeddings' last.
    fn done(&mut self, group: Group);
}

/// Sums of gradients, f32 `[n]` each.
#[derive(Debug)]
pub struct Gradients<B: Backend>(Vec<Option<Tensor<B, 1>>>);

impl<B: Backend> Gradients<B> {
    /// None yet, for a table of `count` parameters.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(|sum| *sum = None);
    }

    /// The gradient of one parameter, where there is one.
    pub fn get(&self, index: usize) -> Option<&Tensor<B, 1>> {
        self.0.get(index)?.as_ref()
    }

    /// The same, taken out.
    pub fn remove(&mut self, index: usize) -> Option<Tensor<B, 1>> {
        self.0.get_mut(index)?.take()
    }
}

impl<B: ModelOps> Gradients<B> {
    /// Global L2 norm over all parameters: each one's sum of squares, added in f64 in the order of
    /// the table.
    pub fn norm(&self) -> Result<f64, DeviceError> {
        let all = self.0.iter().flatten().cloned().collect();
        let squares: f64 = B::sums_of_squares(all)?.iter().sum();
        Ok(squares.sqrt())
    }
}

impl<B: Backend> GradientReceiver<B> for Gradients<B> {
    fn take(&mut self, index: usize, grad: Tensor<B, 1>) {
        if let Some(sum) = self.0.get_mut(index) {
            *sum = Some(match sum.take() {
                Some(sum) => sum + grad,
                None => grad,
            });
        }
    }

    fn done(&mut self, _group: Group) {}
}

/// Moves the gradients of a module's parameters, the first of which is number `first` of the table,
/// out of `grads` to `receiver`, flat and in f32.
pub(super) fn hand_on<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    first: usize,
    grads: &mut B::Gradients,
    receiver: &mut dyn GradientReceiver<B::InnerBackend>,
) {
    visit_parameters(module, first, &mut HandOn::<B> { grads, receiver });
}

struct HandOn<'a, B: AutodiffBackend> {
    grads: &'a mut B::Gradients,
    receiver: &'a mut dyn GradientReceiver<B::InnerBackend>,
}

impl<B: AutodiffBackend> ParameterVisitor<B> for HandOn<'_, B> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        if let Some(grad) = parameter.val().grad_remove(self.grads) {
            self.receiver.take(index, to_f32(grad.reshape([-1])));
        }
    }
}
