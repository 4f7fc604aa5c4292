use qf_config::model::QformerConfig;
use tch::Tensor;

use super::attention::Attention;
use super::plan::{Layout, Past, Plan};
use super::rows::RowMap;
use super::KeyValue;
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear, LinearInit, Rows};
use crate::low::LowCopies;
use crate::params::Scope;

/// What self-attention leaves: see [`Layer::mix`].
type Mixed = ([Option<Rows>; 2], Layout, Vec<KeyValue>);

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

    /// Computes products in 16 bits from here on, or in 32 again.
    pub(crate) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        self.attention.use_copies(copies.as_deref_mut())?;
        if let Some(attention) = &mut self.cross_attention {
            attention.use_copies_for_queries(copies.as_deref_mut())?;
        }
        for network in [&mut self.text_network, &mut self.query_network] {
            network.intermediate.use_copies(copies.as_deref_mut())?;
            network.output.use_copies(copies.as_deref_mut())?;
        }
        Ok(())
    }

    /// The projections of the image's keys and values, if this layer attends to it.
    pub(crate) fn image_layers(&self) -> Option<[&Linear; 2]> {
        let attention = self.cross_attention.as_ref()?;
        Some(attention.key_value_layers())
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
        rows: &Rows,
        plan: &Plan,
        last: bool,
        images: Option<&[&KeyValue]>,
        past: Option<&KeyValue>,
        dropout: Dropout,
    ) -> Result<(Rows, Vec<KeyValue>), ModelError> {
        let (parts, layout, own) = self.mix(rows, plan, last, past, dropout)?;
        let parts = self.networks(parts, plan, images, dropout)?;
        Ok((layout.join_rows(parts)?, own))
    }

    /// Which rows of the images the query rows look at: `[R, L, M]`, softmax of the products with the
    /// keys, the mean over the heads. `None` in a layer without cross attention.
    pub(crate) fn attention_to_images(
        &self,
        rows: &Rows,
        plan: &Plan,
        image: &KeyValue,
    ) -> Result<Option<Tensor>, ModelError> {
        let Some(attention) = &self.cross_attention else {
            return Ok(None);
        };
        let ([queries, _], ..) = self.mix(rows, plan, false, None, Dropout { probability: 0.0 })?;
        let (Some(queries), [map]) = (queries, &plan.images[..]) else {
            return Ok(None);
        };
        attention
            .weights(&attention.query(&queries)?, map, &image.key)
            .map(Some)
    }

    /// Self-attention: query rows and text rows that go on, how they lie together, and keys and values
    /// of each segment.
    fn mix(
        &self,
        rows: &Rows,
        plan: &Plan,
        last: bool,
        past: Option<&KeyValue>,
        dropout: Dropout,
    ) -> Result<Mixed, ModelError> {
        let read = match &plan.last {
            Some(read) if last => Some(read),
            _ => None,
        };
        let asking = read
            .map(|read| rows.map(|rows| read.select(rows)))
            .transpose()?;
        let projected = self.attention.project(rows, asking.as_ref())?;
        let maps: Vec<&RowMap> = plan.segments.iter().map(|s| &s.keys).collect();
        let query_maps: Vec<&RowMap> = match read {
            Some(read) => read.queries.iter().collect(),
            None => maps.clone(),
        };
        let mut own: Vec<KeyValue> = Vec::with_capacity(maps.len());
        let mut gathered = Vec::with_capacity(maps.len());
        let segments = self.attention.segments(&projected, &maps, &query_maps)?;
        for (index, (heads, segment)) in segments.into_iter().zip(&plan.segments).enumerate() {
            let before = match segment.past {
                Past::Nothing => None,
                Past::Segment(earlier) => own.get(earlier),
                Past::Given => past,
            };
            let joined = before
                .map(|before| before.join(&heads.key_value))
                .transpose()?;
            let mixed = self.attention.gather_heads(
                &heads.query,
                query_maps[index],
                joined.as_ref().unwrap_or(&heads.key_value),
                segment.mask.as_ref(),
                dropout,
            )?;
            gathered.push(mixed);
            own.push(heads.key_value);
        }
        let asking = asking.as_ref().unwrap_or(rows);
        let rows = self.attention.output(&cat(&gathered)?, asking, dropout)?;
        let layout = match read {
            Some(_) => Layout::Stacked {
                query_rows: plan.layout.query_rows(),
            },
            None => plan.layout,
        };
        Ok((layout.split_rows(&rows.map(flat)?)?, layout, own))
    }

    /// Cross attention and the feed-forward networks, of query rows and of text rows.
    fn networks(
        &self,
        [queries, text]: [Option<Rows>; 2],
        plan: &Plan,
        images: Option<&[&KeyValue]>,
        dropout: Dropout,
    ) -> Result<[Option<Rows>; 2], ModelError> {
        let queries = match (queries, &self.cross_attention, images) {
            (Some(rows), Some(attention), Some(images)) => {
                Some(look_at(attention, &rows, plan, images, dropout)?)
            }
            (queries, _, _) => queries,
        };
        let queries = queries.map(|rows| self.query_network.forward(&rows, dropout));
        let text = text.map(|rows| self.text_network.forward(&rows, dropout));
        Ok([queries.transpose()?, text.transpose()?])
    }
}

/// Cross attention of query rows `[…, D]` to their images.
fn look_at(
    attention: &Attention,
    rows: &Rows,
    plan: &Plan,
    images: &[&KeyValue],
    dropout: Dropout,
) -> Result<Rows, ModelError> {
    let sizes: Vec<i64> = plan.images.iter().map(RowMap::rows).collect();
    let queries = attention.query(rows)?.f_split_with_sizes(sizes, 0)?;
    let gathered = queries
        .iter()
        .zip(&plan.images)
        .zip(images)
        .map(|((query, map), image)| attention.gather(query, map, image, None, dropout))
        .collect::<Result<Vec<_>, _>>()?;
    attention.output(&cat(&gathered)?, rows, dropout)
}

/// `[…, D]` → `[M, D]`.
fn flat(rows: &Tensor) -> Result<Tensor, ModelError> {
    Ok(match rows.dim() {
        2 => rows.shallow_clone(),
        _ => rows.f_flatten(0, -2)?,
    })
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

    fn forward(&self, rows: &Rows, dropout: Dropout) -> Result<Rows, ModelError> {
        let hidden = self.intermediate.forward(rows.for_products())?;
        let hidden = hidden.f_gelu("none")?;
        self.norm.after_linear(&self.output, &hidden, rows, dropout)
    }
}
