//! The Q-Former (Li et al., arXiv 2301.12597): BERT layers over learned queries and text, in which
//! queries and text share self-attention, queries alone attend to the image, and each has its own
//! feed-forward network.
//!
//! Follows LAVIS `lavis/models/blip2_models/Qformer.py`; parameter names are LAVIS's.
//!
//! Dimensions: B batch, Q queries, T text tokens, L = rows of a call (Q, T or Q + T), M image
//! tokens, E image width, D hidden width, V vocabulary.

mod attention;
mod decode;
mod embeddings;
mod head;
mod layer;

use tch::{Kind, Tensor};

use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::layers::Dropout;
use crate::params::Scope;

use embeddings::Embeddings;
use head::LmHead;
use layer::Layer;

/// Added to attention scores of masked keys. Not -∞: the reference's number.
pub(crate) const MASKED: f64 = -10_000.0;

/// Keys and values of one attention, each `[B, heads, S, d]`.
#[derive(Debug)]
pub(crate) struct KeyValue {
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl KeyValue {
    /// The batch entries of `index`, `[N]` i64.
    pub(crate) fn select(&self, index: &Tensor) -> Result<KeyValue, ModelError> {
        Ok(KeyValue {
            key: self.key.f_index_select(0, index)?,
            value: self.value.f_index_select(0, index)?,
        })
    }

    /// Several batches one after the other.
    fn stack(parts: &[&KeyValue]) -> KeyValue {
        let keys: Vec<_> = parts.iter().map(|part| &part.key).collect();
        let values: Vec<_> = parts.iter().map(|part| &part.value).collect();
        KeyValue {
            key: Tensor::cat(&keys, 0),
            value: Tensor::cat(&values, 0),
        }
    }
}

/// An image as cross attention sees it: keys and values of every layer that has one, in order.
///
/// They depend on nothing but the image, so that one computation serves every call of a step.
#[derive(Debug)]
pub(crate) struct ImageKeyValues(Vec<KeyValue>);

impl ImageKeyValues {
    pub(crate) fn select(&self, index: &Tensor) -> Result<ImageKeyValues, ModelError> {
        let layers = self.0.iter().map(|layer| layer.select(index));
        Ok(ImageKeyValues(layers.collect::<Result<_, _>>()?))
    }

    pub(crate) fn stack(parts: &[&ImageKeyValues]) -> ImageKeyValues {
        let layers = parts.first().map_or(0, |part| part.0.len());
        let stack_layer = |index: usize| {
            let layer: Vec<_> = parts.iter().map(|part| &part.0[index]).collect();
            KeyValue::stack(&layer)
        };
        ImageKeyValues((0..layers).map(stack_layer).collect())
    }
}

/// Rows of the last layer and what the self-attention of each layer computed on the way.
pub(crate) struct QformerOutput {
    /// `[B, L, D]`.
    pub(crate) hidden: Tensor,
    /// One per layer.
    pub(crate) cache: Vec<KeyValue>,
}

/// The Q-Former with its language-model head.
#[derive(Debug)]
pub(crate) struct Qformer {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    head: LmHead,
    num_queries: i64,
    dropout: f64,
}

impl Qformer {
    pub(crate) fn new(mut scope: Scope<'_>, config: &QformerConfig) -> Result<Qformer, ModelError> {
        let embeddings = Embeddings::new(scope.sub("bert.embeddings"), config)?;
        let layers = (0..config.layers)
            .map(|index| {
                let name = format_args!("bert.encoder.layer.{index}");
                Layer::new(scope.sub(name), config, config.has_cross_attention(index))
            })
            .collect::<Result<_, _>>()?;
        let head = LmHead::new(scope.sub("cls.predictions"), config)?;
        Ok(Qformer {
            embeddings,
            layers,
            head,
            num_queries: config.num_queries,
            dropout: config.dropout,
        })
    }

    fn dropout(&self, train: bool) -> Dropout {
        Dropout {
            probability: if train { self.dropout } else { 0.0 },
        }
    }

    /// Keys and values of image features `[B, M, E]` for every layer with cross attention.
    pub(crate) fn project_image(&self, image_embeds: &Tensor) -> ImageKeyValues {
        ImageKeyValues(
            self.layers
                .iter()
                .filter_map(|layer| layer.project_image(image_embeds))
                .collect(),
        )
    }

    /// Queries alone, all seeing each other: `query_tokens` `[1, Q, D]` → rows `[B, Q, D]`.
    pub(crate) fn encode_image(
        &self,
        query_tokens: &Tensor,
        batch: i64,
        image: &ImageKeyValues,
        train: bool,
    ) -> QformerOutput {
        let dropout = self.dropout(train);
        let queries = query_tokens.expand([batch, -1, -1], false);
        let rows = self.embeddings.normalize(&queries, dropout);
        self.run(rows, self.num_queries, None, Some(image), None, dropout)
    }

    /// Text alone, padding masked: ids and mask `[B, T]` → rows `[B, T, D]`.
    pub(crate) fn encode_text(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
        train: bool,
    ) -> Result<QformerOutput, ModelError> {
        let dropout = self.dropout(train);
        let words = self.embeddings.words(token_ids)?;
        let rows = self.embeddings.normalize(&words, dropout);
        let mask = key_mask(attention_mask, 0, words.kind());
        Ok(self.run(rows, 0, Some(&mask), None, None, dropout))
    }

    /// Queries and text together, all seeing all but padding: → rows `[B, Q + T, D]`.
    pub(crate) fn encode_pair(
        &self,
        query_tokens: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
        image: &ImageKeyValues,
        train: bool,
    ) -> Result<QformerOutput, ModelError> {
        let dropout = self.dropout(train);
        let words = self.embeddings.words(token_ids)?; // [B, T, D]
        let queries = query_tokens.expand([token_ids.size()[0], -1, -1], false);
        let rows = Tensor::cat(&[&queries, &words], 1); // [B, Q + T, D]
        let rows = self.embeddings.normalize(&rows, dropout);
        let mask = key_mask(attention_mask, self.num_queries, words.kind());
        Ok(self.run(
            rows,
            self.num_queries,
            Some(&mask),
            Some(image),
            None,
            dropout,
        ))
    }

    /// Text that sees the queries through `cache` (of [`Qformer::encode_image`]) and, of itself,
    /// what came before: ids and mask `[B, T]` → rows `[B, T, D]`.
    ///
    /// The cache keeps its graph: the language-model loss reaches the queries and the image.
    pub(crate) fn decode_text(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
        cache: &[KeyValue],
        train: bool,
    ) -> Result<Tensor, ModelError> {
        let dropout = self.dropout(train);
        let words = self.embeddings.words(token_ids)?;
        let rows = self.embeddings.normalize(&words, dropout);
        let mask = causal_mask(attention_mask, self.num_queries, words.kind());
        let output = self.run(rows, 0, Some(&mask), None, Some(cache), dropout);
        Ok(output.hidden)
    }

    /// Scores of the next token: `[…, D]` → `[…, V]`.
    pub(crate) fn predict_tokens(&self, hidden: &Tensor) -> Tensor {
        self.head.forward(hidden, self.embeddings.word_embeddings())
    }

    fn run(
        &self,
        rows: Tensor,
        num_queries: i64,
        mask: Option<&Tensor>,
        image: Option<&ImageKeyValues>,
        cache: Option<&[KeyValue]>,
        dropout: Dropout,
    ) -> QformerOutput {
        let mut hidden = rows;
        let mut images = image.map(|image| image.0.iter());
        let mut new_cache = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let image = match &mut images {
                Some(images) if layer.has_cross_attention() => images.next(),
                _ => None,
            };
            let past = cache.and_then(|cache| cache.get(index));
            let (rows, key_value) = layer.forward(&hidden, num_queries, mask, image, past, dropout);
            hidden = rows;
            new_cache.push(key_value);
        }
        QformerOutput {
            hidden,
            cache: new_cache,
        }
    }
}

/// `[B, T]` of ones and zeros → additive mask `[B, 1, 1, visible + T]`, the first `visible` keys
/// never masked.
fn key_mask(attention_mask: &Tensor, visible: i64, kind: Kind) -> Tensor {
    let text = attention_mask.to_kind(kind).unsqueeze(1).unsqueeze(1); // [B, 1, 1, T]
    let ones = Tensor::ones([text.size()[0], 1, 1, visible], (kind, text.device()));
    additive(&Tensor::cat(&[ones, text], 3))
}

/// `[B, T]` of ones and zeros → additive mask `[B, 1, T, visible + T]`: text row i sees the first
/// `visible` keys and those text keys j ≤ i that are no padding.
fn causal_mask(attention_mask: &Tensor, visible: i64, kind: Kind) -> Tensor {
    let text = attention_mask.to_kind(kind).unsqueeze(1).unsqueeze(1); // [B, 1, 1, T]
    let (batch, length) = (attention_mask.size()[0], attention_mask.size()[1]);
    let lower = Tensor::ones([length, length], (kind, text.device())).tril(0); // [T, T]
    let text = text * lower; // [B, 1, T, T]
    let ones = Tensor::ones([batch, 1, length, visible], (kind, text.device()));
    additive(&Tensor::cat(&[ones, text], 3))
}

/// 1 → 0, 0 → [`MASKED`].
fn additive(mask: &Tensor) -> Tensor {
    (1.0 - mask) * MASKED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use crate::ModelConfig;
    use tch::Device;

    fn rows(mask: &Tensor) -> Vec<Vec<f32>> {
        let size = mask.size();
        let flat = mask.reshape([-1, size[3]]);
        Vec::<Vec<f32>>::try_from(&flat).unwrap()
    }

    #[test]
    fn masks_by_hand() {
        const X: f32 = -10_000.0;
        let attention = Tensor::from_slice2(&[[1i64, 1, 1], [1, 1, 0]]);
        let keys = key_mask(&attention, 2, Kind::Float);
        assert_eq!(keys.size(), [2, 1, 1, 5]);
        assert_eq!(
            rows(&keys),
            [[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, X]]
        );
        assert_eq!(key_mask(&attention, 0, Kind::Float).size(), [2, 1, 1, 3]);
        let causal = causal_mask(&attention, 1, Kind::Float);
        assert_eq!(causal.size(), [2, 1, 3, 4]);
        assert_eq!(
            rows(&causal),
            [
                [0.0, 0.0, X, X],
                [0.0, 0.0, 0.0, X],
                [0.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, X, X],
                [0.0, 0.0, 0.0, X],
                [0.0, 0.0, 0.0, X],
            ]
        );
    }

    /// A Q-Former of `layers` layers with cross attention every `freq`, 5 queries, width 24.
    fn small(layers: i64, freq: i64) -> (Qformer, QformerConfig, Tensor, ParamStore) {
        let config = QformerConfig {
            hidden: 24,
            layers,
            heads: 3,
            intermediate: 32,
            cross_attention_freq: freq,
            num_queries: 5,
            encoder_width: 16,
            vocab_size: 30,
            max_positions: 12,
            dec_token_id: 29,
            init_std: 0.5,
            dropout: 0.1,
            ..ModelConfig::tiny().qformer
        };
        let mut store = ParamStore::new(Device::Cpu, 1);
        let query_tokens = store
            .root()
            .param("q", &[1, 5, 24], crate::params::Init::Normal { std: 1.0 })
            .unwrap();
        let qformer = Qformer::new(store.root().sub("Qformer"), &config).unwrap();
        (qformer, config, query_tokens, store)
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        a.allclose(b, 1e-5, 1e-5, false)
    }

    #[test]
    fn cross_attention_follows_the_frequency() {
        for (layers, freq, expected) in [(4, 2, 2), (5, 2, 3), (3, 1, 3), (3, 5, 1), (1, 1, 1)] {
            let (qformer, _, query_tokens, store) = small(layers, freq);
            let image = Tensor::randn([2, 7, 16], (Kind::Float, Device::Cpu));
            let projected = qformer.project_image(&image);
            assert_eq!(projected.0.len(), expected);
            assert_eq!(projected.0[0].key.size(), [2, 3, 7, 8]);
            let output = qformer.encode_image(&query_tokens, 2, &projected, false);
            assert_eq!(output.hidden.size(), [2, 5, 24]);
            assert_eq!(output.cache.len(), layers as usize);
            assert_eq!(output.cache[0].key.size(), [2, 3, 5, 8]);
            let last = format!("Qformer.bert.encoder.layer.{}.crossattention", layers - 1);
            let has = store
                .named_parameters()
                .iter()
                .any(|p| p.name.starts_with(&last));
            assert_eq!(has, (layers - 1) % freq == 0);
        }
    }

    #[test]
    fn padding_and_later_tokens_do_not_reach_earlier_rows() {
        let (qformer, _, query_tokens, _store) = small(3, 2);
        let image = qformer.project_image(&Tensor::randn([1, 7, 16], (Kind::Float, Device::Cpu)));
        let queries = qformer.encode_image(&query_tokens, 1, &image, false);
        let mask = Tensor::from_slice2(&[[1i64, 1, 1, 1, 0]]);
        let ids = Tensor::from_slice2(&[[3i64, 4, 5, 6, 0]]);
        let padded = Tensor::from_slice2(&[[3i64, 4, 5, 6, 9]]);
        let later = Tensor::from_slice2(&[[3i64, 4, 5, 7, 0]]);

        let text = |ids| qformer.encode_text(ids, &mask, false).unwrap().hidden;
        let before = |rows: &Tensor, count| rows.narrow(1, 0, count);
        assert!(close(&before(&text(&ids), 4), &before(&text(&padded), 4)));
        assert!(!close(&before(&text(&ids), 3), &before(&text(&later), 3)));

        let pair = |ids| {
            let output = qformer.encode_pair(&query_tokens, ids, &mask, &image, false);
            output.unwrap().hidden
        };
        assert_eq!(pair(&ids).size(), [1, 10, 24]);
        assert!(close(&before(&pair(&ids), 9), &before(&pair(&padded), 9)));
        assert!(!close(&before(&pair(&ids), 5), &before(&pair(&later), 5)));

        let decode = |ids| {
            qformer
                .decode_text(ids, &mask, &queries.cache, false)
                .unwrap()
        };
        assert!(close(
            &before(&decode(&ids), 3),
            &before(&decode(&later), 3)
        ));
        assert!(!close(&decode(&ids), &decode(&later)));
    }

    #[test]
    fn decoded_text_depends_on_the_image_and_back_propagates_into_it() {
        let (qformer, _, query_tokens, _store) = small(3, 2);
        let embeds = Tensor::randn([1, 7, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let image = qformer.project_image(&embeds);
        let queries = qformer.encode_image(&query_tokens, 1, &image, false);
        let ids = Tensor::from_slice2(&[[3i64, 4, 5]]);
        let hidden = qformer
            .decode_text(&ids, &ids.ones_like(), &queries.cache, false)
            .unwrap();
        hidden.square().sum(Kind::Float).backward();
        assert!(embeds.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
        assert!(query_tokens.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
    }

    #[test]
    fn the_query_network_starts_as_a_copy_of_the_text_network() {
        let (_, _, _, store) = small(2, 2);
        let mut compared = 0;
        for param in store.named_parameters() {
            if param.name.contains("_query.") {
                let text = param.name.replace("_query", "");
                assert_eq!(param.tensor, store.get(&text).unwrap().tensor, "{text}");
                compared += 1;
            }
        }
        assert_eq!(compared, 12);
    }

    #[test]
    fn dropout_acts_in_training_only() {
        let (qformer, _, _, _store) = small(2, 2);
        let ids = Tensor::from_slice2(&[[3i64, 4, 5]]);
        let run = |train| {
            let output = qformer.encode_text(&ids, &ids.ones_like(), train);
            output.unwrap().hidden
        };
        assert_eq!(run(false), run(false));
        assert_ne!(run(true), run(true));
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_an_error() {
        let (qformer, _, _, _store) = small(1, 1);
        let ids = Tensor::from_slice2(&[[3i64, 30]]);
        assert!(qformer.encode_text(&ids, &ids.ones_like(), false).is_err());
    }
}
