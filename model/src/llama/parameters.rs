//! The ordered table of a Llama's parameters: what each is called, where it lies, whether it is
//! trained.
//!
//! Its order is that of the module's fields, and everything that goes through all parameters goes
//! in it: checkpoints, gradients, optimizer state, plans.

use std::fmt;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::config::LlamaConfig;

/// The linear layers of a block, by their paths in it; each can have an adapter.
pub const LINEAR_LAYERS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Parameters whose gradients are complete at the same time, in the order of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The embeddings, the last to be complete; a tied projection's gradient is theirs.
    Embeddings,
    /// Block i.
    Block(usize),
    /// The final norm and the vocabulary projection, the first to be complete.
    Head,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embeddings => f.write_str("embeddings"),
            Self::Block(i) => write!(f, "block {i}"),
            Self::Head => f.write_str("head"),
        }
    }
}

/// What a parameter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[vocab, hidden]`.
    Embedding,
    /// A norm's weight `[hidden]`.
    Norm,
    /// A linear layer's weight `[out, in]`.
    Weight,
    /// A linear layer's bias `[out]`.
    Bias,
    /// LoRA's A `[rank, in]`.
    AdapterA,
    /// LoRA's B `[out, rank]`.
    AdapterB,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Hugging Face's name; PEFT's where it belongs to an adapter.
    pub name: String,
    /// Its size along each dimension, as checkpoints store it.
    pub shape: Vec<usize>,
    /// Where it lies in a flat whole of all parameters.
    pub range: Range<usize>,
    /// Where it stands in the order of the backward pass.
    pub group: Group,
    /// Its part in its layer.
    pub kind: Kind,
    /// The path of its linear layer in its block, where it belongs to one ([`LINEAR_LAYERS`]).
    pub layer: Option<&'static str>,
    /// Whether training changes it; with adapters only theirs are trained.
    pub trained: bool,
}

impl Parameter {
    /// As checkpoints list it.
    pub fn name_and_shape(&self) -> (&str, &[usize]) {
        (&self.name, &self.shape)
    }

    /// Whether it belongs to an adapter.
    pub fn is_adapter(&self) -> bool {
        matches!(self.kind, Kind::AdapterA | Kind::AdapterB)
    }
}

/// All parameters of a model, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterTable(Vec<Parameter>);

impl ParameterTable {
    /// Of a model without adapters, all trained.
    pub fn new(config: &LlamaConfig) -> Self {
        Self::with_adapters(config, 0, |_, _| false)
    }

    /// The same with adapters of rank `rank` at the layers (block, path in it) for which
    /// `has_adapter` holds; only they are trained.
    pub fn with_adapters(
        config: &LlamaConfig,
        rank: usize,
        has_adapter: impl Fn(usize, &str) -> bool,
    ) -> Self {
        let mut list = List::default();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embeddings = "model.embed_tokens.weight";
        list.add(
            Group::Embeddings,
            Kind::Embedding,
            embeddings,
            &[vocab, hidden],
        );
        for i in 0..config.num_hidden_layers {
            let group = Group::Block(i);
            let at = |part: &str| format!("model.layers.{i}.{part}");
            list.add(group, Kind::Norm, &at("input_layernorm.weight"), &[hidden]);
            for layer in LINEAR_LAYERS {
                if layer == "mlp.gate_proj" {
                    let norm = at("post_attention_layernorm.weight");
                    list.add(group, Kind::Norm, &norm, &[hidden]);
                }
                let rank = has_adapter(i, layer).then_some(rank);
                list.add_linear(config, i, layer, rank);
            }
        }
        list.add(Group::Head, Kind::Norm, "model.norm.weight", &[hidden]);
        if !config.tie_word_embeddings {
            list.add(
                Group::Head,
                Kind::Weight,
                "lm_head.weight",
                &[vocab, hidden],
            );
        }
        let mut table = list.0;
        if table.iter().any(Parameter::is_adapter) {
            for parameter in &mut table {
                parameter.trained = parameter.is_adapter();
            }
        }
        Self(table)
    }

    /// All of them, in order.
    pub fn all(&self) -> &[Parameter] {
        &self.0
    }

    /// Those of one group, by their places in the table.
    pub fn group(&self, group: Group) -> Range<usize> {
        let first = self.0.partition_point(|p| p.group < group);
        let end = self.0.partition_point(|p| p.group <= group);
        first..end
    }

    /// All groups, in order.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.iter().map(|p| p.group).collect();
        groups.dedup();
        groups
    }

    /// Those that are trained, with their places in the table.
    pub fn trained(&self) -> impl Iterator<Item = (usize, &Parameter)> {
        self.0.iter().enumerate().filter(|(_, p)| p.trained)
    }

    /// The table without adapters, as of a model that they were merged into.
    pub fn merged(&self) -> Self {
        let mut list = List::default();
        for parameter in self.0.iter().filter(|p| !p.is_adapter()) {
            list.push(parameter.clone());
        }
        Self(list.0)
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.0.last().map_or(0, |last| last.range.end)
    }

    /// Number of parameters that are trained.
    pub fn count_trained(&self) -> usize {
        self.trained().map(|(_, p)| p.range.len()).sum()
    }
}

/// A table under construction.
#[derive(Default)]
struct List(Vec<Parameter>);

impl List {
    fn push(&mut self, mut parameter: Parameter) {
        let start = self.0.last().map_or(0, |last| last.range.end);
        parameter.range = start..start + parameter.shape.iter().product::<usize>();
        parameter.trained = true;
        self.0.push(parameter);
    }

    fn add(&mut self, group: Group, kind: Kind, name: &str, shape: &[usize]) {
        self.push(Parameter {
            name: name.into(),
            shape: shape.into(),
            range: 0..0,
            group,
            kind,
            layer: None,
            trained: true,
        });
    }

    fn add_linear(
        &mut self,
        config: &LlamaConfig,
        block: usize,
        layer: &'static str,
        rank: Option<usize>,
    ) {
        let [output, input] = linear_shape(config, layer);
        let bias = match layer.starts_with("mlp.") {
            true => config.mlp_bias,
            false => config.attention_bias,
        };
        let first = self.0.len();
        let group = Group::Block(block);
        let path = format!("model.layers.{block}.{layer}");
        self.add(
            group,
            Kind::Weight,
            &format!("{path}.weight"),
            &[output, input],
        );
        if bias {
            self.add(group, Kind::Bias, &format!("{path}.bias"), &[output]);
        }
        if let Some(rank) = rank {
            let name = |factor: char| peft_name(block, layer, factor);
            self.add(group, Kind::AdapterA, &name('A'), &[rank, input]);
            self.add(group, Kind::AdapterB, &name('B'), &[output, rank]);
        }
        for parameter in &mut self.0[first..] {
            parameter.layer = Some(layer);
        }
    }
}

/// `[out, in]` of a block's linear layer.
fn linear_shape(config: &LlamaConfig, layer: &str) -> [usize; 2] {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    match layer {
        "self_attn.q_proj" => [queries, hidden],
        "self_attn.k_proj" | "self_attn.v_proj" => [keys, hidden],
        "self_attn.o_proj" => [hidden, queries],
        "mlp.down_proj" => [hidden, ffn],
        _ => [ffn, hidden],
    }
}

/// PEFT's name of a factor (`A` or `B`) of the adapter of a block's layer.
pub fn peft_name(block: usize, layer: &str, factor: char) -> String {
    format!("base_model.model.model.layers.{block}.{layer}.lora_{factor}.weight")
}

/// Sees every parameter of a module, and its place in the table.
pub trait ParameterVisitor<B: Backend> {
    /// Parameter `index`.
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>);
}

/// Changes every parameter of a module, and knows its place in the table.
pub trait ParameterMapper<B: Backend> {
    /// Parameter `index`.
    fn map<const D: usize>(
        &mut self,
        index: usize,
        parameter: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>>;
}

/// Goes through a module whose first parameter is number `first` of the table.
pub fn visit_parameters<B: Backend, M: Module<B>>(
    module: &M,
    first: usize,
    visitor: &mut impl ParameterVisitor<B>,
) {
    let next = first;
    module.visit(&mut Numbered { next, of: visitor });
}

/// The same, changing them.
pub fn map_parameters<B: Backend, M: Module<B>>(
    module: M,
    first: usize,
    mapper: &mut impl ParameterMapper<B>,
) -> M {
    let next = first;
    module.map(&mut Numbered { next, of: mapper })
}

/// Numbers parameters as they come.
struct Numbered<'a, T> {
    next: usize,
    of: &'a mut T,
}

impl<T> Numbered<'_, T> {
    fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }
}

impl<B: Backend, T: ParameterVisitor<B>> ModuleVisitor<B> for Numbered<'_, T> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let number = self.number();
        self.of.visit(number, param);
    }
}

impl<B: Backend, T: ParameterMapper<B>> ModuleMapper<B> for Numbered<'_, T> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let number = self.number();
        self.of.map(number, param)
    }
}
