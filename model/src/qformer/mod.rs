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
mod image;
mod key_value;
mod layer;
mod plan;
mod rows;

use qf_config::model::QformerConfig;
use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Rows};
use crate::low::LowCopies;
use crate::params::Scope;

use embeddings::Embeddings;
use head::LmHead;
use layer::Layer;
use plan::{causal_mask, key_mask, Layout, Past, Plan};
use rows::RowMap;

pub(crate) use image::ImageProjection;
pub(crate) use key_value::{ImageKeyValues, KeyValue};
pub(crate) use plan::{TextRows, MASKED};

/// What queries alone come to.
pub(crate) struct EncodedImage {
    /// `[B, Q, D]`.
    pub(crate) hidden: Tensor,
    /// Keys and values of every layer's self-attention.
    pub(crate) cache: Vec<KeyValue>,
}

/// A batch of texts and which of its positions are computed.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    /// `[B, T]` i64.
    pub(crate) token_ids: &'a Tensor,
    /// `[B, T]` i64.
    pub(crate) attention_mask: &'a Tensor,
    pub(crate) rows: &'a TextRows,
}

/// What queries alone and texts alone come to.
pub(crate) struct Unimodal {
    /// `[B, Q, D]`: queries that saw the image.
    pub(crate) queries: Tensor,
    /// `[B, D]` when cut, else `[N, D]`: text that saw itself.
    pub(crate) text: Tensor,
    /// `[N', D]`: text that saw the queries and its own past.
    pub(crate) decoder: Tensor,
}

/// The Q-Former with its language-model head.
#[derive(Debug)]
pub(crate) struct Qformer {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    head: LmHead,
    num_queries: i64,
    heads: i64,
    dropout: f64,
    /// The element type of products in 16 bits, if they are.
    low_kind: Option<Kind>,
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
            heads: config.heads,
            dropout: config.dropout,
            low_kind: None,
        })
    }

    /// Computes products in 16 bits from here on, with copies of the parameters; in 32 without any.
    /// Norms, residuals and scores stay in 32.
    pub(crate) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        self.low_kind = copies.as_ref().map(|copies| copies.kind());
        for layer in &mut self.layers {
            layer.use_copies(copies.as_deref_mut())?;
        }
        self.head
            .use_copies(self.embeddings.word_embeddings(), copies)
    }

    fn dropout(&self, train: bool) -> Dropout {
        Dropout {
            probability: if train { self.dropout } else { 0.0 },
        }
    }

    /// Keys and values of image features `[B, M, E]` for every layer with cross attention. The
    /// features still miss gain and shift of `norm`.
    pub(crate) fn project_image(
        &self,
        features: &Tensor,
        norm: &LayerNorm,
    ) -> Result<ImageKeyValues, ModelError> {
        self.image_projection(norm)?.project(features)
    }

    /// Queries alone, all seeing each other: `query_tokens` `[1, Q, D]` → rows `[B, Q, D]`.
    pub(crate) fn encode_image(
        &self,
        query_tokens: &Tensor,
        batch: i64,
        image: &ImageKeyValues,
        train: bool,
    ) -> Result<EncodedImage, ModelError> {
        let plan = Plan::queries(batch, self.num_queries);
        let rows = self.embed(Some((query_tokens, batch)), &[], plan.layout, train)?;
        let (rows, cache) = self.run(rows, &plan, &[image], None, train)?;
        Ok(EncodedImage {
            hidden: rows.f_view([batch, self.num_queries, -1])?,
            cache: cache.into_iter().flatten().collect(),
        })
    }

    /// Where the queries look in the last layer with cross attention: the share of each image row in what
    /// a query gathers, `[B, Q, M]`, the mean over the heads.
    pub(crate) fn attention_to_images(
        &self,
        query_tokens: &Tensor,
        batch: i64,
        image: &ImageKeyValues,
    ) -> Result<Tensor, ModelError> {
        let plan = Plan::queries(batch, self.num_queries);
        let rows = self.embed(Some((query_tokens, batch)), &[], plan.layout, false)?;
        let mut rows = Rows::new(rows, self.low_kind)?;
        let mut images = image.0.iter();
        for layer in &self.layers {
            let looked_at = match layer.has_cross_attention() {
                true => images.next(),
                false => None,
            };
            if let Some(keys) = looked_at.filter(|_| images.len() == 0) {
                if let Some(weights) = layer.attention_to_images(&rows, &plan, keys)? {
                    return Ok(weights);
                }
            }
            let looked_at = looked_at.map(|keys| vec![keys]);
            let dropout = self.dropout(false);
            let (next, _) =
                layer.forward(&rows, &plan, false, looked_at.as_deref(), None, dropout)?;
            rows = next;
        }
        Err(ModelError::Input {
            what: "attention to images",
            message: "no layer has cross attention".into(),
        })
    }

    /// Text alone, padding masked: ids and mask `[B, T]` → rows `[B, T, D]`.
    pub(crate) fn encode_text(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
        train: bool,
    ) -> Result<Tensor, ModelError> {
        let size = token_ids.size();
        let all = TextRows::all(size[0], size[1]);
        let mask = self.mask(key_mask(attention_mask, 0)?)?;
        let plan = Plan::text(&all, Some(mask), Past::Nothing)?;
        let rows = self.embed(None, &[(token_ids, &all)], plan.layout, train)?;
        let (rows, _) = self.run(rows, &plan, &[], None, train)?;
        Ok(rows.f_view([size[0], size[1], -1])?)
    }

    /// Queries alone, text alone, and decoder text that continues the queries, in one pass. With
    /// `cut`, only what is read at the end is computed there: of the text its first rows.
    ///
    /// The decoder's keys keep their graph: the language-model loss reaches queries and image.
    pub(crate) fn encode_unimodal(
        &self,
        query_tokens: &Tensor,
        image: &ImageKeyValues,
        text: Text<'_>,
        decoder: Text<'_>,
        cut: bool,
        train: bool,
    ) -> Result<Unimodal, ModelError> {
        let batch = text.token_ids.size()[0];
        let plan = Plan::unimodal(
            self.num_queries,
            (text.rows, self.mask(key_mask(text.attention_mask, 0)?)?),
            (
                decoder.rows,
                self.mask(causal_mask(decoder.attention_mask, self.num_queries)?)?,
            ),
            cut,
        )?;
        let texts = [
            (text.token_ids, text.rows),
            (decoder.token_ids, decoder.rows),
        ];
        let rows = self.embed(Some((query_tokens, batch)), &texts, plan.layout, train)?;
        let (rows, _) = self.run(rows, &plan, &[image], None, train)?;
        let text_rows = if cut { batch } else { text.rows.rows() };
        let sizes = [plan.layout.query_rows(), text_rows, decoder.rows.rows()];
        let [queries, text, decoder] = three(rows.f_split_with_sizes(sizes, 0)?)?;
        Ok(Unimodal {
            queries: queries.f_view([batch, self.num_queries, -1])?,
            text,
            decoder,
        })
    }

    /// Queries and text together, all seeing all but padding, one image a pair: → rows of the
    /// queries `[B, Q, D]`.
    pub(crate) fn encode_pairs(
        &self,
        query_tokens: &Tensor,
        text: Text<'_>,
        image: &ImageKeyValues,
        train: bool,
    ) -> Result<Tensor, ModelError> {
        let maps = vec![RowMap::dense(text.token_ids.size()[0], self.num_queries)];
        let (queries, _) = self.pairs(query_tokens, text, maps, &[image], true, train)?;
        Ok(queries)
    }

    /// The pairs of a matching step: 3 B texts, of which 2 b and 2 b + 1 go with image b, and
    /// 2 B + b with negative image b. → rows of the queries `[3 B, Q, D]` and, unless cut, of the
    /// text `[N, D]`.
    pub(crate) fn encode_matching(
        &self,
        query_tokens: &Tensor,
        text: Text<'_>,
        image: &ImageKeyValues,
        negative_image: &ImageKeyValues,
        cut: bool,
        train: bool,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let size = text.token_ids.size();
        let pairs = size[0] / 3;
        let maps = vec![
            RowMap::dense(pairs, 2 * self.num_queries),
            RowMap::dense(pairs, self.num_queries),
        ];
        let images = [image, negative_image];
        self.pairs(query_tokens, text, maps, &images, cut, train)
    }

    fn pairs(
        &self,
        query_tokens: &Tensor,
        text: Text<'_>,
        maps: Vec<RowMap>,
        images: &[&ImageKeyValues],
        cut: bool,
        train: bool,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let batch = text.token_ids.size()[0];
        let mask = self.mask(key_mask(text.attention_mask, self.num_queries)?)?;
        let plan = Plan::pairs(self.num_queries, text.rows, mask, maps, cut)?;
        let texts = [(text.token_ids, text.rows)];
        let rows = self.embed(Some((query_tokens, batch)), &texts, plan.layout, train)?;
        let (rows, _) = self.run(rows, &plan, images, None, train)?;
        let [queries, text] = match cut {
            true => [Some(rows), None],
            false => plan.layout.split(&rows)?,
        };
        let width = query_tokens.size()[2];
        let rows = |rows: Option<Tensor>| match rows {
            Some(rows) => rows.f_reshape([-1, width]),
            None => Ok(Tensor::new()),
        };
        let queries = rows(queries)?.f_view([batch, self.num_queries, width])?;
        Ok((queries, rows(text)?))
    }

    /// Text that sees the queries through `cache` (of [`Qformer::encode_image`]) and, of itself,
    /// what came before: ids and mask `[B, T]` → rows `[B, T, D]`. What the same text comes to token
    /// by token, and in a step.
    #[cfg(test)]
    pub(crate) fn decode_text(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
        cache: &[KeyValue],
        train: bool,
    ) -> Result<Tensor, ModelError> {
        let size = token_ids.size();
        let all = TextRows::all(size[0], size[1]);
        let mask = self.mask(causal_mask(attention_mask, self.num_queries)?)?;
        let plan = Plan::text(&all, Some(mask), Past::Given)?;
        let rows = self.embed(None, &[(token_ids, &all)], plan.layout, train)?;
        let (rows, _) = self.run(rows, &plan, &[], Some(cache), train)?;
        Ok(rows.f_view([size[0], size[1], -1])?)
    }

    /// Scores of the next token: `[…, D]` → `[…, V]`.
    pub(crate) fn predict_tokens(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        self.head.forward(hidden, self.embeddings.word_embeddings())
    }

    /// The rows that enter the first layer, `[M, D]`: queries, if any, and texts, as `layout` says.
    fn embed(
        &self,
        queries: Option<(&Tensor, i64)>,
        texts: &[(&Tensor, &TextRows)],
        layout: Layout,
        train: bool,
    ) -> Result<Tensor, ModelError> {
        let mut parts = Vec::with_capacity(3);
        if let Some((tokens, batch)) = queries {
            parts.push(tokens.f_expand([batch, -1, -1], false)?.f_flatten(0, 1)?);
        }
        if !texts.is_empty() {
            let ids = texts.iter().map(|(ids, rows)| rows.select(ids));
            let ids = Tensor::f_cat(&ids.collect::<Result<Vec<_>, _>>()?, 0)?;
            let sizes: Vec<i64> = texts.iter().map(|(_, rows)| rows.rows()).collect();
            let words = self.embeddings.words(&ids)?.f_split_with_sizes(sizes, 0)?;
            for (words, (_, rows)) in words.iter().zip(texts) {
                parts.push(self.embeddings.add_positions(words, rows)?);
            }
        }
        let rows = match layout {
            Layout::Stacked { .. } => Tensor::f_cat(&parts, 0)?,
            Layout::Sequences {
                batch,
                queries,
                text,
            } => {
                let sizes = [queries, text];
                let parts = parts.iter().zip(sizes);
                let parts = parts.map(|(part, size)| part.f_view([batch, size, -1]));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)?.f_flatten(0, 1)?
            }
        };
        self.embeddings.normalize(&rows, self.dropout(train))
    }

    /// An additive mask `[R, 1, L or 1, S]` in the element type of the attention that adds it. In 16
    /// bits its rows lie a multiple of 8 numbers apart, as the kernels of a GPU want them.
    fn mask(&self, mask: Tensor) -> Result<Tensor, ModelError> {
        const ALIGNMENT: i64 = 8;
        let Some(kind) = self.low_kind else {
            return Ok(mask);
        };
        let keys = mask.size()[3];
        let missing = (ALIGNMENT - keys % ALIGNMENT) % ALIGNMENT;
        let padded = mask.f_to_kind(kind)?.f_constant_pad_nd([0, missing])?;
        Ok(padded.f_narrow(3, 0, keys)?)
    }

    /// Rows `[M, D]` through all layers: the rows that are read, and keys and values by layer and
    /// segment.
    fn run(
        &self,
        rows: Tensor,
        plan: &Plan,
        images: &[&ImageKeyValues],
        past: Option<&[KeyValue]>,
        train: bool,
    ) -> Result<(Tensor, Vec<Vec<KeyValue>>), ModelError> {
        let dropout = self.dropout(train);
        let mut rows = Rows::new(rows, self.low_kind)?;
        let mut cache = Vec::with_capacity(self.layers.len());
        let mut cross = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            let looked_at: Option<Vec<&KeyValue>> = match layer.has_cross_attention() {
                true => {
                    cross += 1;
                    images.iter().map(|image| image.0.get(cross - 1)).collect()
                }
                false => None,
            };
            let last = index + 1 == self.layers.len();
            let past = past.and_then(|past| past.get(index));
            let (next, own) =
                layer.forward(&rows, plan, last, looked_at.as_deref(), past, dropout)?;
            rows = next;
            cache.push(own);
        }
        Ok((rows.full, cache))
    }
}

/// The three parts of a split.
fn three(parts: Vec<Tensor>) -> Result<[Tensor; 3], ModelError> {
    parts
        .try_into()
        .map_err(|parts: Vec<Tensor>| ModelError::Input {
            what: "rows of a pass",
            message: format!("{} parts instead of 3", parts.len()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use crate::ModelConfig;
    use tch::{Device, Kind};

    /// A Q-Former of `layers` layers with cross attention every `freq`, 5 queries, width 24.
    fn small(layers: i64, freq: i64) -> (Qformer, LayerNorm, Tensor, ParamStore) {
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
        let norm = LayerNorm::new(store.root().sub("ln_vision"), 16, 1e-5).unwrap();
        (qformer, norm, query_tokens, store)
    }

    fn close(a: &Tensor, b: &Tensor) -> bool {
        a.allclose(b, 1e-5, 1e-5, false)
    }

    #[test]
    fn cross_attention_follows_the_frequency() {
        for (layers, freq, expected) in [(4, 2, 2), (5, 2, 3), (3, 1, 3), (3, 5, 1), (1, 1, 1)] {
            let (qformer, norm, query_tokens, store) = small(layers, freq);
            let image = Tensor::randn([2, 7, 16], (Kind::Float, Device::Cpu));
            let projected = qformer.project_image(&image, &norm).unwrap();
            assert_eq!(projected.0.len(), expected);
            assert_eq!(projected.0[0].key.size(), [2, 3, 7, 8]);
            let output = qformer.encode_image(&query_tokens, 2, &projected, false);
            let output = output.unwrap();
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

    /// What torch's memory-efficient attention asks of a mask in 16 bits, with no more memory than that takes.
    #[test]
    fn masks_in_16_bits_are_aligned() {
        let (mut qformer, _, _, _) = small(1, 1);
        let plain = Tensor::ones([2, 1, 3, 5], (Kind::Float, Device::Cpu));
        assert_eq!(qformer.mask(plain).unwrap().stride(), [15, 15, 5, 1]);
        qformer.low_kind = Some(Kind::BFloat16);
        for keys in 1..=17 {
            let mask = Tensor::arange(6 * keys, (Kind::Float, Device::Cpu)).view([2, 1, 3, keys]);
            let aligned = qformer.mask(mask.copy()).unwrap();
            assert_eq!(
                (aligned.size(), aligned.kind()),
                (mask.size(), Kind::BFloat16)
            );
            assert!(aligned.equal(&mask.to_kind(Kind::BFloat16)));
            let row = aligned.stride()[2];
            assert!(row % 8 == 0 && (keys..keys + 8).contains(&row), "{row}");
        }
    }

    #[test]
    fn padding_and_later_tokens_do_not_reach_earlier_rows() {
        let (qformer, norm, query_tokens, _store) = small(3, 2);
        let embeds = Tensor::randn([1, 7, 16], (Kind::Float, Device::Cpu));
        let image = qformer.project_image(&embeds, &norm).unwrap();
        let queries = qformer
            .encode_image(&query_tokens, 1, &image, false)
            .unwrap();
        let mask = Tensor::from_slice2(&[[1i64, 1, 1, 1, 0]]);
        let ids = Tensor::from_slice2(&[[3i64, 4, 5, 6, 0]]);
        let padded = Tensor::from_slice2(&[[3i64, 4, 5, 6, 9]]);
        let later = Tensor::from_slice2(&[[3i64, 4, 5, 7, 0]]);

        let text = |ids| qformer.encode_text(ids, &mask, false).unwrap();
        let before = |rows: &Tensor, count| rows.narrow(1, 0, count);
        assert!(close(&before(&text(&ids), 4), &before(&text(&padded), 4)));
        assert!(!close(&before(&text(&ids), 3), &before(&text(&later), 3)));

        let pair = |ids| {
            let rows = TextRows::all(1, 5);
            let text = Text {
                token_ids: ids,
                attention_mask: &mask,
                rows: &rows,
            };
            qformer
                .encode_pairs(&query_tokens, text, &image, false)
                .unwrap()
        };
        // The queries see the text, but not its padding.
        assert_eq!(pair(&ids).size(), [1, 5, 24]);
        assert!(close(&pair(&ids), &pair(&padded)));
        assert!(!close(&pair(&ids), &pair(&later)));

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
        let (qformer, norm, query_tokens, _store) = small(3, 2);
        let embeds = Tensor::randn([1, 7, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let image = qformer.project_image(&embeds, &norm).unwrap();
        let queries = qformer
            .encode_image(&query_tokens, 1, &image, false)
            .unwrap();
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
            output.unwrap()
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
