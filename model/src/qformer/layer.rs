use tch::Tensor;

use super::attention::Attention;
use super::plan::{Past, Plan};
use super::rows::RowMap;
use super::KeyValue;
use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear, LinearInit};
use crate::params::Scope;

/// One layer: self-attention of all rows, then cross attention and a feed-forward network of their
/// own for the query rows, and another feed-forward network for the text rows.
#[derive(Debug)]
pub(crate) struct Layer {
    attention: Attention,
    cross_attention: Option<Attention>,
    text_network: FeedForward,
    query_network: FeedForward,
}

impl Layer {
    pub(crate) fn new(
        mut scope: Scope<'_>,
        config: &QformerConfig,
        has_cross_attention: bool,
    ) -> Result<Layer, ModelError> {
        let attention = Attention::new(scope.sub("attention"), config, config.hidden)?;
        let cross_attention = match has_cross_attention {
            true => {
                let scope = scope.sub("crossattention");
                Some(Attention::new(scope, config, config.encoder_width)?)
            }
            false => None,
        };
        let text_network = FeedForward::new(&mut scope, config)?;
        let query_network = FeedForward::query_copy_of(&mut scope, config, &text_network)?;
        Ok(Layer {
            attention,
            cross_attention,
            text_network,
            query_network,
        })
    }

    pub(crate) fn has_cross_attention(&self) -> bool {
        self.cross_attention.is_some()
    }

    /// Keys and values of image rows `[B, M, E]` that still miss gain and shift of `norm`, if this
    /// layer attends to the image.
    pub(crate) fn project_image(
        &self,
        normalized: &Tensor,
        norm: &LayerNorm,
    ) -> Result<Option<KeyValue>, ModelError> {
        match &self.cross_attention {
            Some(attention) => Ok(Some(attention.image_key_value(normalized, norm)?)),
            None => Ok(None),
        }
    }

    /// Rows `[M, D]` of `plan`, query rows first, → the rows that go on, and keys and values of each
    /// segment as its own self-attention computed them.
    ///
    /// `images` are the keys and values of this layer, if it attends to the image. `past` comes
    /// before the keys of segments that ask for it. In the `last` layer only the rows go on that
    /// somebody reads.
    pub(crate) fn forward(
        &self,
        rows: &Tensor,
        plan: &Plan,
        last: bool,
        images: Option<&[&KeyValue]>,
        past: Option<&KeyValue>,
        dropout: Dropout,
    ) -> Result<(Tensor, Vec<KeyValue>), ModelError> {
        let (key, value) = self.attention.key_value(rows)?;
        let read = match &plan.last {
            Some(read) if last => Some(read),
            _ => None,
        };
        let rows = match read {
            Some(read) => read.select(rows)?,
            None => rows.shallow_clone(),
        };
        let query = self.attention.query(&rows)?;

        let sizes: Vec<i64> = plan.segments.iter().map(|s| s.keys.rows()).collect();
        let query_maps: Vec<&RowMap> = match read {
            Some(read) => read.queries.iter().collect(),
            None => plan.segments.iter().map(|s| &s.keys).collect(),
        };
        let query_sizes: Vec<i64> = query_maps.iter().map(|map| map.rows()).collect();
        let queries = query.f_split_with_sizes(query_sizes, 0)?;
        let keys = key.f_split_with_sizes(sizes.as_slice(), 0)?;
        let values = value.f_split_with_sizes(sizes.as_slice(), 0)?;
        let mut own: Vec<KeyValue> = Vec::with_capacity(sizes.len());
        let mut gathered = Vec::with_capacity(sizes.len());
        for (index, segment) in plan.segments.iter().enumerate() {
            let key_value =
                self.attention
                    .split_key_value(&keys[index], &values[index], &segment.keys)?;
            let before = match segment.past {
                Past::Nothing => None,
                Past::Segment(earlier) => own.get(earlier),
                Past::Given => past,
            };
            let joined = before.map(|before| before.join(&key_value)).transpose()?;
            let mixed = self.attention.gather(
                &queries[index],
                query_maps[index],
                joined.as_ref().unwrap_or(&key_value),
                segment.mask.as_ref(),
                dropout,
            )?;
            gathered.push(mixed);
            own.push(key_value);
        }
        let rows = self.attention.output(&cat(&gathered)?, &rows, dropout)?;
        Ok((self.networks(&rows, plan, images, dropout)?, own))
    }

    /// Cross attention and the feed-forward networks, of query rows and of text rows.
    fn networks(
        &self,
        rows: &Tensor,
        plan: &Plan,
        images: Option<&[&KeyValue]>,
        dropout: Dropout,
    ) -> Result<Tensor, ModelError> {
        let all = rows.size()[0];
        let num_queries = plan.query_rows;
        if num_queries == 0 {
            return self.text_network.forward(rows, dropout);
        }
        let mut parts = rows.f_split_with_sizes([num_queries, all - num_queries], 0)?;
        if let (Some(attention), Some(images)) = (&self.cross_attention, images) {
            let query = attention.query(&parts[0])?;
            let sizes: Vec<i64> = plan.images.iter().map(RowMap::rows).collect();
            let queries = query.f_split_with_sizes(sizes, 0)?;
            let gathered = queries
                .iter()
                .zip(&plan.images)
                .zip(images)
                .map(|((query, map), image)| attention.gather(query, map, image, None, dropout))
                .collect::<Result<Vec<_>, _>>()?;
            parts[0] = attention.output(&cat(&gathered)?, &parts[0], dropout)?;
        }
        parts[0] = self.query_network.forward(&parts[0], dropout)?;
        if all == num_queries {
            return Ok(parts.swap_remove(0));
        }
        parts[1] = self.text_network.forward(&parts[1], dropout)?;
        cat(&parts)
    }
}

/// Parts one under the other; a single one is not copied.
fn cat(parts: &[Tensor]) -> Result<Tensor, ModelError> {
    match parts {
        [one] => Ok(one.shallow_clone()),
        _ => Ok(Tensor::f_cat(parts, 0)?),
    }
}

/// BERT's feed-forward block: dense, GELU, dense, dropout, residual, norm.
#[derive(Debug)]
struct FeedForward {
    intermediate: Linear, // D → I
    output: Linear,       // I → D
    norm: LayerNorm,
}

impl FeedForward {
    fn new(scope: &mut Scope<'_>, config: &QformerConfig) -> Result<FeedForward, ModelError> {
        let (width, inner) = (config.hidden, config.intermediate);
        let init = LinearInit::Normal(config.init_std);
        Ok(FeedForward {
            intermediate: Linear::new(scope.sub("intermediate.dense"), width, inner, init)?,
            output: Linear::new(scope.sub("output.dense"), inner, width, init)?,
            norm: LayerNorm::new(scope.sub("output.LayerNorm"), width, config.eps)?,
        })
    }

    /// The query rows' network, which starts from the values of the text rows'.
    fn query_copy_of(
        scope: &mut Scope<'_>,
        config: &QformerConfig,
        text: &FeedForward,
    ) -> Result<FeedForward, ModelError> {
        let (width, inner) = (config.hidden, config.intermediate);
        Ok(FeedForward {
            intermediate: Linear::new(
                scope.sub("intermediate_query.dense"),
                width,
                inner,
                LinearInit::CopyOf(&text.intermediate),
            )?,
            output: Linear::new(
                scope.sub("output_query.dense"),
                inner,
                width,
                LinearInit::CopyOf(&text.output),
            )?,
            norm: LayerNorm::copy_of(scope.sub("output_query.LayerNorm"), &text.norm)?,
        })
    }

    fn forward(&self, rows: &Tensor, dropout: Dropout) -> Result<Tensor, ModelError> {
        let hidden = self.intermediate.forward(rows)?.f_gelu("none")?;
        self.norm
            .forward_residual(&self.output.forward(&hidden)?, rows, dropout)
    }
}
