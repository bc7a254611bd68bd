//! Tensors alive at the moments at which a step may need most memory: sums of what the modules of
//! the llama crate say that they keep.

use super::{
    memory::{Memory, Moment},
    shape::{Block, Layer, Shape},
};
use crate::{OptimizerConfig, TrainConfig, objective, step};
use burn_lora_kernels::{Gemm, attention_scores};
use burn_lora_llama::{
    Keep, LlamaConfig,
    layers::{LinearCosts, TokenCost},
    spec::LayerSpec,
};
use burn_lora_quant::joins_update;
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
    /// Whether products with weights of 4 bits are in FP8.
    pub fp8: bool,
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

    fn bytes(&self, cost: TokenCost) -> u64 {
        cost.bytes(self.tokens(), self.size)
    }

    /// Returns the specification of a layer and what an adapter makes of its linear layers.
    fn layer(&self, index: usize) -> (&LayerSpec, Costs<'_>) {
        let costs = Costs { block: &self.shape.blocks[index], shape: self.shape };
        (&self.config.layers[index], costs)
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
        let tile = step::tile(self.tokens(), train.mlp_chunk, self.shape.dropout);
        // A last segment of one layer is run again, too.
        let all_again = tile.is_some() && segments[last].len() == 1;
        let inputs = |number: usize| match train.offload {
            // One is on its way while another one is used.
            true => self.values(self.config.hidden_size) * number.clamp(1, 2) as u64,
            // `step::run` keeps the output of every segment but the last; the first one's input is
            // that of its first norm.
            false => self.values(self.config.hidden_size) * number.max(1) as u64,
        };
        let again = if all_again { last + 1 } else { last };
        let step = train.step();
        // What a segment keeps inside, if it is run again, and where.
        let keeps = |number: usize| step.keep(number, again, self.shape.dropout);
        let inside = |number: usize| match segments[..again].get(number) {
            Some(segment) => self.kept_of_attention(segment.end - 1, keeps(number).0),
            None => 0,
        };
        let waits = |number: usize| keeps(number).1;
        // Of the segments up to this one on the device, and of this and the next one in host memory.
        let kept = |most: usize| {
            let most = most.min(again.saturating_sub(1));
            let here = |number: &usize| *number < again && (!waits(*number) || number + 1 >= most);
            (0..=most).filter(here).map(inside).sum::<u64>()
        };
        let waiting = self.values(self.config.hidden_size) * again.saturating_sub(1) as u64;
        let waiting = waiting + (0..again).filter(|n| waits(*n)).map(inside).sum::<u64>();
        let host = if train.offload { waiting } else { 0 };
        let begin = Memory { host: begin.host + host, ..begin.clone() };

        let of_last =
            if all_again { 0 } else { self.kept(self.tracked(&segments[last], last == 0)) };
        let mut moments = vec![Memory {
            moment: Moment::Loss,
            // Of the micro-batches before, and of the head.
            gradients: if accumulates { all + done } else { done },
            inputs: inputs(last) + kept(again.saturating_sub(1)),
            activations: of_last + self.values(self.config.hidden_size),
            loss: self.loss(train.loss_chunk),
            scratch: self.scratch(0),
            ..begin.clone()
        }];
        for (number, segment) in segments.iter().enumerate().rev() {
            let tracked = self.tracked(segment, number == 0);
            let Some(last) = tracked.clone().next_back() else { break };
            let before = tracked.start..last;
            let blocks = &self.shape.blocks[tracked.clone()];
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
                inputs: inputs(number) + kept(number),
                activations,
                scratch,
                ..begin.clone()
            };
            // The input of this layer, if it is not that of the segment.
            let input = if before.is_empty() { 0 } else { self.config.hidden_size };
            let (runs_again, kept_inside) = (number < again, inside(number) > 0);
            let already = if kept_inside { keeps(number).0 } else { Keep::Inputs };
            let activations = if runs_again && (tile.is_some() || kept_inside) {
                let tile = tile.unwrap_or(self.tokens());
                let block = self.feed_forward_at_once(last, tile, !kept_inside);
                self.kept(before.clone()) + self.values(input) + block
            } else {
                self.kept(tracked) + self.mlp_gradients(last)
            };
            moments.push(moment(Moment::Mlp, activations, self.scratch(self.decoded(last))));
            let activations =
                self.kept(before) + self.values(input) + self.attention_backward(last, already);
            let scores = self.scores(last) * (2 * 4 + 2 * self.size as u64);
            moments.push(moment(Moment::Attention, activations, self.scratch(scores)));
        }
        // AdamW is one operation; Burn's optimizers allocate some intermediate vectors.
        let vectors = match train.optimizer {
            OptimizerConfig::AdamW { .. } | OptimizerConfig::AdamW8bit { .. } => 1,
            // And the gradient that it multiplies.
            OptimizerConfig::LoraFa { .. } => 2,
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
        let hidden = self.config.hidden_size;
        let all = 0..self.config.layers.len();
        let most = |bytes: &dyn Fn(usize) -> u64| all.clone().map(bytes).max().unwrap_or(0);
        let decoded = most(&|index| self.decoded(index));
        let layers = &self.config.layers;
        let tile = step::tile(self.tokens(), None, false);
        let mlp = |index: usize| layers[index].feed_forward_inference(hidden);
        let mlp = most(&|index| match tile {
            None => self.bytes(mlp(index)),
            Some(tile) => mlp(index).bytes(tile, self.size) + self.values(2 * hidden),
        });
        let attention = most(&|index| self.bytes(layers[index].attention.inference(hidden)));
        let scores = most(&|index| self.scores(index)) * (4 + self.size as u64);
        let moment = |moment, activations, loss, scratch| Memory {
            moment,
            activations,
            loss,
            scratch: self.scratch(scratch),
            ..begin.clone()
        };
        let logits = self.logits(objective::chunk(self.config.vocab_size));
        vec![
            moment(Moment::Mlp, mlp, 0, decoded),
            moment(Moment::Attention, attention, 0, scores),
            moment(Moment::Loss, self.values(hidden), logits, 0),
        ]
    }

    /// Returns the layers of a segment that have a graph: in the first segment it begins at the
    /// first trained parameter.
    fn tracked(&self, segment: &Range<usize>, is_first: bool) -> Range<usize> {
        let trains = |layer: &Layer| !layer.trained().is_empty();
        if !is_first || trains(&self.shape.embedding) {
            return segment.clone();
        }
        let trains = |index: &usize| self.shape.blocks[*index].values().any(trains);
        segment.clone().find(trains).unwrap_or(segment.end)..segment.end
    }

    /// Returns the bytes that layers with a graph keep for their backward pass, without the input
    /// of the first.
    fn kept(&self, layers: Range<usize>) -> u64 {
        let between = layers.len().saturating_sub(1) * self.config.hidden_size;
        let inside = layers.map(|index| {
            let (spec, costs) = self.layer(index);
            self.bytes(spec.kept(self.config.hidden_size, &costs, self.fused)) + self.casts(index)
        });
        self.values(between) + inside.sum::<u64>()
    }

    /// Returns the bytes of the casts of trained weights to the compute dtype.
    fn casts(&self, index: usize) -> u64 {
        self.shape.blocks[index].values().map(|layer| self.cast(layer)).sum()
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

    /// Returns the bytes on top of the kept ones, backward through an MLP.
    fn mlp_gradients(&self, index: usize) -> u64 {
        self.bytes(self.feed_forward_backward(index))
    }

    fn feed_forward_backward(&self, index: usize) -> TokenCost {
        let (spec, costs) = self.layer(index);
        let twice = !self.packed && costs.block[spec.down_path()].rank().is_some();
        spec.feed_forward_backward(self.config.hidden_size, &costs, twice)
    }

    /// Returns the bytes of a layer forward and backward in its feed-forward block, `tile` tokens at a
    /// time: the gradients for the tiles before, the block, and, if the attention has a graph by then,
    /// what that keeps with the sum of its output.
    fn feed_forward_at_once(&self, index: usize, tile: usize, graph: bool) -> u64 {
        let (spec, costs) = self.layer(index);
        let hidden = self.config.hidden_size;
        let attention = spec.kept_by_attention(hidden, &costs, self.fused).plus_values(hidden);
        let attention = if graph { self.bytes(attention) } else { 0 };
        let block = spec.kept_by_feed_forward(hidden, &costs) + self.feed_forward_backward(index);
        let block = block.bytes(tile.min(self.tokens()), self.size);
        attention + self.values(hidden) + self.casts(index) + block
    }

    /// Returns the bytes that a layer keeps of what its attention computed.
    fn kept_of_attention(&self, index: usize, keep: Keep) -> u64 {
        let kept = self.config.layers[index].kept_of_attention(self.config.hidden_size, keep);
        kept.map_or(0, |cost| self.bytes(cost))
    }

    /// Returns the bytes of a layer backward in its attention, the kept ones with them.
    fn attention_backward(&self, index: usize, already: Keep) -> u64 {
        let (spec, costs) = self.layer(index);
        let hidden = self.config.hidden_size;
        let mut kept = spec.attention.kept(hidden, &costs);
        // Kept already.
        kept.values -= match already {
            Keep::Inputs => 0,
            Keep::Outputs => spec.attention.q_width(),
            Keep::Attention => spec.attention.q_width() + spec.attention.kv_width(),
        };
        let kept = self.bytes(kept) + self.casts(index);
        kept + self.bytes(spec.attention.backward(hidden, self.fused))
    }

    /// Returns the number of attention scores alive at a time.
    fn scores(&self, index: usize) -> u64 {
        if self.fused {
            return 0;
        }
        let attention = &self.config.layers[index].attention;
        let (heads, kv_heads) = (attention.num_heads, attention.num_kv_heads);
        attention_scores(self.rows, heads, kv_heads, self.length) as u64
    }

    /// Returns the bytes of the largest weight of a layer, decoded, with those of a copy of the other factor
    /// where there is one: in products in FP8, and in those that have the update in them.
    fn decoded(&self, index: usize) -> u64 {
        let layers = self.shape.blocks[index].values();
        let packed = layers.filter(|layer| self.packed && !layer.is_copied());
        let bytes = packed.map(|layer| {
            let (rows, rank) = (self.tokens(), layer.rank().unwrap_or(0));
            let (narrow, wide) = (layer.out.min(layer.width), layer.out.max(layer.width));
            match self.fp8 {
                true => layer.values() + rows * wide,
                false if self.fused && joins_update(rows, rank, narrow, wide) => {
                    self.size * (layer.values() + rank * wide + rows * (narrow + rank))
                }
                false => self.size * layer.values(),
            }
        });
        bytes.max().unwrap_or(0) as u64
    }

    /// Returns `more` plus what is always needed: cuBLASLt's workspace, the tables of positions.
    fn scratch(&self, more: u64) -> u64 {
        let positions = self.length.next_power_of_two().max(256);
        let tables: usize = self.config.ropes.iter().map(|rope| rope.dim).sum();
        more + (Gemm::WORKSPACE_BYTES + 4 * positions * tables) as u64
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

/// What an adapter makes of the linear layers of a decoder layer.
struct Costs<'a> {
    block: &'a Block,
    shape: &'a Shape,
}

impl LinearCosts for Costs<'_> {
    fn keeps_input(&self, path: &str) -> bool {
        let layer = &self.block[path];
        layer.is_copied() || layer.rank().is_some() && !self.shape.dropout
    }

    /// `h = x · Aᵀ`; the dropout mask and the masked input; for DoRA the scaled products.
    fn beside(&self, path: &str) -> usize {
        let layer = &self.block[path];
        let Some(rank) = layer.rank() else { return 0 };
        let (dropped, scaled) = match self.shape.dropout {
            true => (2 * layer.width, 2 * layer.out),
            false => (0, layer.out),
        };
        rank + dropped + if self.shape.dora { scaled } else { 0 }
    }
}
