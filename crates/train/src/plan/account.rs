//! Tensors alive at the moments at which a step may need most memory: sums of what the modules of
//! the llama crate say that they keep.

use super::{
    memory::{Memory, Moment},
    shape::{Block, Layer, Shape},
};
use crate::{
    OptimizerConfig, TrainConfig,
    course::{Course, Stretch, tile},
    objective,
};
use burn_lora_adapter::{LayerKind, Role};
use burn_lora_kernels::{Gemm, attention_scores, optimizer::Batch};
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
    /// Bytes that an objective has at its loss beside the next token's.
    pub at_loss: u64,
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
        let hidden = self.config.hidden_size;
        let accumulates = train.gradient_accumulation_steps > 1;
        let all = self.all_gradients();
        // Gradients of the layers that the backward pass has gone through.
        let mut done = self.shape.gradient_bytes([&self.shape.norm, &self.shape.head]);
        let tile = tile(self.tokens(), train.mlp_chunk, self.shape.dropout);
        let depth = self.shape.blocks.len();
        let keeps = |index| self.keeps(index);
        let Course { again, graph } =
            Course::new(&train.step(), depth, tile, self.shape.dropout, keeps);
        // What a stretch keeps of its last layer's attention, and of its feed-forward block.
        let attention =
            |stretch: &Stretch| self.kept_of_attention(stretch.layers.end - 1, stretch.keep);
        let feed_forward = |stretch: &Stretch| match stretch.keep {
            Keep::All => self.kept_of_feed_forward(stretch.layers.end - 1),
            _ => 0,
        };
        // On the device while it is the turn of a stretch: of it and those before. Of what is on its way to
        // or from the host there are two.
        let kept = |number: usize| {
            let inputs = match train.offload {
                true => number.clamp(1, 2),
                // The first one's input is that of its first norm.
                false => number.max(1),
            };
            let before = again.iter().enumerate().take(number + 1);
            let inside = before.map(|(n, stretch)| {
                let here = !stretch.offload || n + 1 >= number;
                feed_forward(stretch) + if here { attention(stretch) } else { 0 }
            });
            self.values(hidden) * inputs as u64 + inside.sum::<u64>()
        };
        // (The first one has no input.)
        let inputs = again.iter().skip(1).filter(|stretch| stretch.offload_input).count();
        let waits = again.iter().filter(|stretch| stretch.offload);
        let host = self.values(hidden) * inputs as u64 + waits.map(attention).sum::<u64>();
        let begin = Memory { host: begin.host + host, ..begin.clone() };

        let graph = graph.map(|layers| self.tracked(&layers, again.is_empty()));
        let of_graph = graph.clone().map_or(0, |layers| self.kept(layers));
        let mut moments = vec![Memory {
            moment: Moment::Loss,
            // Of the micro-batches before, and of the head.
            gradients: if accumulates { all + done } else { done },
            inputs: kept(again.len()),
            activations: of_graph + self.values(hidden),
            loss: self.loss(train.loss_chunk) + self.at_loss,
            scratch: self.scratch(0),
            ..begin.clone()
        }];
        let graph = graph.into_iter().map(|layers| (again.len(), layers, None));
        let stretches = again.iter().enumerate().rev().map(|(number, stretch)| {
            (number, self.tracked(&stretch.layers, number == 0), Some(stretch))
        });
        for (number, tracked, stretch) in graph.chain(stretches) {
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
                inputs: kept(number),
                activations,
                scratch,
                ..begin.clone()
            };
            // The input of this layer, if it is not that of the stretch, and what the layers between keep.
            let input = if before.is_empty() { 0 } else { self.values(hidden) };
            let whole = stretch.filter(|stretch| stretch.whole);
            let between = match whole {
                None => self.kept(before),
                Some(_) => before.map(|index| self.kept_of_all(index) + self.values(hidden)).sum(),
            };
            let already = match stretch {
                Some(stretch) if attention(stretch) > 0 => stretch.keep,
                _ => Keep::Inputs,
            };
            // With a graph from the layer's input on.
            let has_graph = whole.is_none() && already == Keep::Inputs;
            let activations = match tile.filter(|_| stretch.is_some()) {
                None if has_graph => self.kept(tracked) + self.mlp_gradients(last),
                in_tiles => {
                    let tile = in_tiles.unwrap_or(self.tokens());
                    let again = if has_graph { 0 } else { self.attention_again(last, already) };
                    let block = self.feed_forward_at_once(last, tile, has_graph);
                    // Tiles of what is kept are copied: its gradients may not take its memory.
                    let kept = match in_tiles {
                        None => stretch.map_or(0, feed_forward).min(block),
                        Some(_) => 0,
                    };
                    between + input + again + block - kept
                }
            };
            moments.push(moment(Moment::Mlp, activations, self.scratch(self.decoded(last))));
            let activations = between + input + self.attention_backward(last, already);
            let scores = self.scores(last) * (2 * 4 + 2 * self.size as u64);
            let mut at = moment(Moment::Attention, activations, self.scratch(scores));
            // It is used up by then.
            at.inputs -= stretch.map_or(0, feed_forward);
            moments.push(at);
        }
        // AdamW is one operation, on some vectors at a time; Burn's optimizers allocate some intermediate
        // vectors.
        let (all_values, most) =
            (self.shape.trained().sum(), self.shape.trained().max().unwrap_or(0));
        let values = match train.optimizer {
            OptimizerConfig::AdamW { .. }
            | OptimizerConfig::AdamW8bit { .. }
            | OptimizerConfig::LoraFa { .. } => (Batch::ENOUGH + most).min(all_values),
            _ => 4 * most,
        };
        moments.push(Memory {
            moment: Moment::Update,
            // New values are written beside the old ones; gradients are dropped with each launch.
            gradients: all,
            scratch: 4 * values as u64,
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
        let tile = tile(self.tokens(), None, false);
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

    /// Returns the bytes that a layer keeps of what its attention computed, and of its updates `x · Aᵀ`.
    fn kept_of_attention(&self, index: usize, keep: Keep) -> u64 {
        let kept = self.config.layers[index].kept_of_attention(self.config.hidden_size, keep);
        let linear = self.shape.blocks[index].values();
        let linear = linear.filter(|layer| layer.kind == LayerKind::Linear && !self.shape.dropout);
        let updates = linear.filter_map(Layer::rank).sum();
        kept.map_or(0, |cost| self.bytes(cost.plus_values(updates)))
    }

    /// Returns the bytes of what a layer has to compute again of its attention, before the backward pass of
    /// its feed-forward block.
    fn attention_again(&self, index: usize, already: Keep) -> u64 {
        let all = self.kept_of_attention(index, Keep::Attention);
        all.saturating_sub(self.kept_of_attention(index, already))
    }

    /// Returns the bytes that a layer keeps of what its feed-forward block computed.
    fn kept_of_feed_forward(&self, index: usize) -> u64 {
        self.values(self.config.layers[index].kept_of_feed_forward())
    }

    /// Returns the bytes that a layer keeps of all that it computed.
    fn kept_of_all(&self, index: usize) -> u64 {
        self.kept_of_attention(index, Keep::All) + self.kept_of_feed_forward(index)
    }

    /// Returns `true` if a layer keeps all that its backward pass needs: as
    /// [`CausalLm::keeps`](burn_lora_llama::CausalLm::keeps).
    fn keeps(&self, index: usize) -> bool {
        let has = |layer: &Layer, role| layer.tensors.iter().any(|tensor| tensor.role == role);
        // Of other methods than LoRA it is not known here.
        let lora =
            |layer: &Layer| layer.tensors.is_empty() || has(layer, Role::A) && has(layer, Role::B);
        let plain = |layer: &Layer| !layer.is_copied() && !layer.trains_bias && lora(layer);
        let layers = self.shape.blocks[index].values();
        let mut linear = layers.filter(|layer| layer.kind == LayerKind::Linear);
        let plain = !self.shape.dora && !self.shape.dropout && linear.all(plain);
        plain && self.config.layers[index].can_keep_all()
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
            Keep::Attention | Keep::All => spec.attention.q_width() + spec.attention.kv_width(),
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
