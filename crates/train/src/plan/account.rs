//! Tensors alive at the moments at which a step may need most memory, counted from the code, each
//! tensor of some size once. The letters are H, hidden; Q and K, all heads of queries, and of keys;
//! I, the intermediate size of the MLP; V, the vocabulary.

use super::{
    memory::{Memory, Moment},
    shape::{Block, Layer, Shape},
};
use crate::{OptimizerConfig, TrainConfig, objective};
use burn_lora_kernels::{Gemm, attention_scores};
use burn_lora_llama::LlamaConfig;
use std::ops::Range;

/// A batch on its way through a model.
pub(super) struct Account<'a> {
    pub config: &'a LlamaConfig,
    pub shape: &'a Shape,
    /// Whether the linear layers of the decoder are packed.
    pub packed: bool,
    /// Whether the attention scores stay in registers.
    pub fused: bool,
    /// Bytes per value in the compute dtype.
    pub size: usize,
    pub rows: usize,
    pub length: usize,
}

impl Account<'_> {
    fn tokens(&self) -> usize {
        self.rows * self.length
    }

    /// Returns the bytes of this many values per token.
    fn values(&self, a_token: usize) -> u64 {
        (self.tokens() * a_token * self.size) as u64
    }

    /// Returns Q and K.
    fn heads(&self) -> [usize; 2] {
        let LlamaConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = *self.config;
        [num_attention_heads * head_dim, num_key_value_heads * head_dim]
    }

    /// Returns every moment of a training step at which memory may peak. `begin` has what is always
    /// there.
    pub fn training(&self, train: &TrainConfig, begin: &Memory) -> Vec<Memory> {
        let segments = train.recompute.segments(self.shape.blocks.len());
        let accumulates = train.gradient_accumulation_steps > 1;
        let all = self.all_gradients();
        // Gradients of the layers that the backward pass has gone through.
        let mut done = self.shape.gradient_bytes([&self.shape.norm, &self.shape.head]);
        let last = segments.len() - 1;
        let inputs = |number: usize| match train.offload {
            true => self.values(self.config.hidden_size),
            // `step::run` keeps the output of every segment but the last; the first one's input is
            // that of its first norm.
            false => self.values(self.config.hidden_size) * number.max(1) as u64,
        };
        let waiting = self.values(self.config.hidden_size) * last as u64;
        let host = if train.offload { waiting } else { 0 };
        let begin = Memory { host: begin.host + host, ..begin.clone() };

        let inside = self.tracked(&segments[last], last == 0);
        let mut moments = vec![Memory {
            moment: Moment::Loss,
            // Of the micro-batches before, and of the head.
            gradients: if accumulates { all + done } else { done },
            inputs: inputs(last),
            activations: self.kept(inside) + self.values(self.config.hidden_size),
            loss: self.loss(train.loss_chunk),
            scratch: self.scratch(0),
            ..begin.clone()
        }];
        for (number, segment) in segments.iter().enumerate().rev() {
            let blocks = self.tracked(segment, number == 0);
            let Some((block, before)) = blocks.split_last() else { break };
            let own = self.shape.gradient_bytes(blocks.iter().flat_map(Block::values));
            let embedding = match number {
                0 => self.shape.gradient_bytes([&self.shape.embedding]),
                _ => 0,
            };
            done += own + embedding;
            let gradients = if accumulates { all + own + embedding } else { done };
            let moment = |moment, activations, scratch| Memory {
                moment,
                gradients,
                inputs: inputs(number),
                activations,
                scratch,
                ..begin.clone()
            };
            let activations = self.kept(blocks) + self.mlp_gradients(block);
            moments.push(moment(Moment::Mlp, activations, self.scratch(self.decoded(block))));
            // The input of this layer, if it is not that of the segment.
            let input = if before.is_empty() { 0 } else { self.config.hidden_size };
            let activations =
                self.kept(before) + self.values(input) + self.attention_backward(block);
            let scores = self.scores() * (2 * 4 + 2 * self.size as u64);
            moments.push(moment(Moment::Attention, activations, self.scratch(scores)));
        }
        // AdamW is one operation; Burn's optimizers allocate some intermediate vectors.
        let vectors = match train.optimizer {
            OptimizerConfig::AdamW { .. } | OptimizerConfig::AdamW8bit { .. } => 1,
            _ => 4,
        };
        moments.push(Memory {
            moment: Moment::Update,
            // `params::update` writes new values beside the old ones, and drops the gradients one
            // by one while it does so.
            gradients: all,
            scratch: 4 * vectors * self.shape.trained().max().unwrap_or(0) as u64,
            ..begin
        });
        moments
    }

    /// Returns the moments of a pass without gradients, `step::evaluate`.
    pub fn evaluation(&self, begin: &Memory) -> Vec<Memory> {
        let (hidden, [q, k]) = (self.config.hidden_size, self.heads());
        let inside = self.config.intermediate_size;
        let decoded = self.shape.blocks.iter().map(|block| self.decoded(block)).max();
        // The residual and the norm's output; gate, up and their product.
        let mlp = self.values(2 * hidden + 3 * inside);
        // Those, queries and output, keys and values, and a contiguous copy of the values.
        let attention = self.values(2 * hidden + 2 * q + 3 * k);
        let scores = self.scores() * (4 + self.size as u64);
        let moment = |moment, activations, loss, scratch| Memory {
            moment,
            activations,
            loss,
            scratch: self.scratch(scratch),
            ..begin.clone()
        };
        let logits = self.logits(objective::chunk(self.config.vocab_size));
        vec![
            moment(Moment::Mlp, mlp, 0, decoded.unwrap_or(0)),
            moment(Moment::Attention, attention, 0, scores),
            moment(Moment::Loss, self.values(hidden), logits, 0),
        ]
    }

    /// Returns the layers of a segment that have a graph: in the first segment it begins at the
    /// first trained parameter.
    fn tracked(&self, segment: &Range<usize>, is_first: bool) -> &[Block] {
        let trains = |layer: &Layer| !layer.trained().is_empty();
        let blocks = &self.shape.blocks[segment.clone()];
        if !is_first || trains(&self.shape.embedding) {
            return blocks;
        }
        let begin = blocks.iter().position(|block| block.values().any(trains));
        &blocks[begin.unwrap_or(blocks.len())..]
    }

    /// Returns the bytes that layers with a graph keep for their backward pass, without the input
    /// of the first.
    fn kept(&self, blocks: &[Block]) -> u64 {
        let between = blocks.len().saturating_sub(1) * self.config.hidden_size;
        let inside = blocks.iter().map(|block| {
            let o_proj = &block["self_attn.o_proj"];
            // The output, with the heads moved behind the sequence.
            let output = if self.keeps_input(o_proj) { self.heads()[0] } else { 0 };
            self.attention_kept(block)
                + self.values(output + self.beside(o_proj))
                + self.mlp_kept(block)
        });
        self.values(between) + inside.sum::<u64>()
    }

    /// Returns the bytes kept up to the attention: the norm's output, queries, keys, values, output
    /// (`attention/autodiff.rs` of the kernels crate).
    fn attention_kept(&self, block: &Block) -> u64 {
        let [q, k] = self.heads();
        let linears =
            ["q_proj", "k_proj", "v_proj"].map(|name| &block[&format!("self_attn.{name}")]);
        let normed =
            if linears.iter().any(|l| self.keeps_input(l)) { self.config.hidden_size } else { 0 };
        // Qwen 3: queries and keys before their norms, too.
        let normed_heads = if block.contains_key("self_attn.q_norm") { q + k } else { 0 };
        let beside: usize = linears.iter().map(|layer| self.beside(layer)).sum();
        let sums = 4 * self.tokens() * self.config.num_attention_heads;
        self.values(normed + 2 * q + 2 * k + normed_heads + beside)
            + sums as u64
            + self.casts(block)
    }

    /// Returns the bytes kept by the MLP: the input of the norm, its output, gate and up, and their
    /// product.
    fn mlp_kept(&self, block: &Block) -> u64 {
        let [gate, up, down] =
            ["gate_proj", "up_proj", "down_proj"].map(|name| &block[&format!("mlp.{name}")]);
        let (hidden, inside) = (self.config.hidden_size, self.config.intermediate_size);
        let normed = if self.keeps_input(gate) || self.keeps_input(up) { hidden } else { 0 };
        let product = if self.keeps_input(down) { inside } else { 0 };
        let beside: usize = [gate, up, down].iter().map(|layer| self.beside(layer)).sum();
        self.values(hidden + normed + 2 * inside + product + beside)
    }

    /// Returns `true` if a layer keeps its input: for the gradient of A, or of a copy of the
    /// weight.
    fn keeps_input(&self, layer: &Layer) -> bool {
        layer.is_copied() || layer.rank().is_some() && !self.shape.dropout
    }

    /// Returns the values per token that a layer keeps beside its input: `h = x · Aᵀ`; the dropout
    /// mask and the masked input; for DoRA the scaled products.
    fn beside(&self, layer: &Layer) -> usize {
        let Some(rank) = layer.rank() else { return 0 };
        let (dropped, scaled) = match self.shape.dropout {
            true => (2 * layer.width, 2 * layer.out),
            false => (0, layer.out),
        };
        rank + dropped + if self.shape.dora { scaled } else { 0 }
    }

    /// Returns the bytes of the casts of trained weights to the compute dtype.
    fn casts(&self, block: &Block) -> u64 {
        block.values().map(|layer| self.cast(layer)).sum()
    }

    fn cast(&self, layer: &Layer) -> u64 {
        let copied = if layer.is_copied() { layer.values() } else { 0 };
        // What an update makes of its copies is kept, too, unless its cast is.
        let made = 4 * layer.copied;
        let bytes = match self.size {
            4 => 2 * made,
            size => made + size * (layer.low_rank_values() + copied),
        };
        bytes as u64
    }

    /// Returns the bytes on top of the kept ones, backward through an MLP: the output (forward) and
    /// its gradient; the gradient of the product, which reuses the memory of the product if that is
    /// kept (those of gate and up reuse the memory of gate and up). The input of a dense layer with
    /// an update has two gradients, which are added.
    fn mlp_gradients(&self, block: &Block) -> u64 {
        let down = &block["mlp.down_proj"];
        let own = !self.keeps_input(down);
        let twice = !self.packed && down.rank().is_some();
        let products = usize::from(own) + usize::from(twice);
        self.values(2 * self.config.hidden_size + products * self.config.intermediate_size)
    }

    /// Returns the bytes of a layer backward in its attention: the kept ones, and those of the
    /// gradients of the residual and of the output (made contiguous), of queries, of keys and
    /// values (in float32, if blocks of scores are summed), of the contiguous values, and of
    /// `delta`.
    fn attention_backward(&self, block: &Block) -> u64 {
        let ([q, k], tokens) = (self.heads(), self.tokens());
        let delta = 4 * tokens * self.config.num_attention_heads;
        let sums = if self.fused { self.values(2 * k) } else { (4 * tokens * 2 * k) as u64 };
        let made = self.values(self.config.hidden_size + 2 * q + k) + sums + delta as u64;
        self.attention_kept(block) + made
    }

    /// Returns the number of attention scores alive at a time.
    fn scores(&self) -> u64 {
        if self.fused {
            return 0;
        }
        let LlamaConfig { num_attention_heads, num_key_value_heads, .. } = *self.config;
        attention_scores(self.rows, num_attention_heads, num_key_value_heads, self.length) as u64
    }

    /// Returns the bytes of the largest weight of a layer, decoded.
    fn decoded(&self, block: &Block) -> u64 {
        let packed = block.values().filter(|layer| self.packed && !layer.is_copied());
        (self.size * packed.map(Layer::values).max().unwrap_or(0)) as u64
    }

    /// Returns `more` plus what is always needed: cuBLASLt's workspace, the table of positions.
    fn scratch(&self, more: u64) -> u64 {
        let positions = self.length.next_power_of_two().max(256);
        more + (Gemm::WORKSPACE_BYTES + 4 * positions * self.config.head_dim) as u64
    }

    /// Returns the bytes of a chunk of tokens in the head: the states before and after the norm,
    /// the logits, and their gradient (`objective::next_token`).
    fn logits(&self, chunk: usize) -> u64 {
        let LlamaConfig { vocab_size, hidden_size, .. } = *self.config;
        (self.size * chunk.min(self.tokens()) * (2 * vocab_size + 2 * hidden_size)) as u64
    }

    /// Returns the bytes of head and loss of all tokens: one chunk, and the gradients of the chunks
    /// before; or these, concatenated, and reordered.
    fn loss(&self, chunk: Option<usize>) -> u64 {
        let head = &self.shape.head;
        let grads = self.values(self.config.hidden_size);
        // The gradient of a copy of the head, before it is summed in float32.
        let copied = if head.is_copied() { head.values() * (self.size + 4) } else { 0 };
        let chunk = self.logits(chunk.unwrap_or_else(|| objective::chunk(self.config.vocab_size)));
        (grads + chunk + self.cast(head) + copied as u64).max(3 * grads)
    }

    fn all_gradients(&self) -> u64 {
        4 * self.shape.trained().sum::<usize>() as u64
    }
}
