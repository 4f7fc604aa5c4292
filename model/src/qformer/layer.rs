use tch::Tensor;

use super::attention::Attention;
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

    /// Keys and values of image features `[B, M, E]`, if this layer attends to the image.
    pub(crate) fn project_image(&self, image_embeds: &Tensor) -> Option<KeyValue> {
        let attention = self.cross_attention.as_ref()?;
        Some(attention.key_value(image_embeds))
    }

    /// Rows `[B, L, D]`, the first `num_queries` of them queries, → rows `[B, L, D]` and the
    /// self-attention's own keys and values. `past` is put before them; `image` is there in layers
    /// with cross attention if there are queries.
    pub(crate) fn forward(
        &self,
        rows: &Tensor,
        num_queries: i64,
        mask: Option<&Tensor>,
        image: Option<&KeyValue>,
        past: Option<&KeyValue>,
        dropout: Dropout,
    ) -> (Tensor, KeyValue) {
        let own = self.attention.key_value(rows);
        let rows = match past {
            Some(past) => {
                let all = KeyValue {
                    key: Tensor::cat(&[&past.key, &own.key], 2),
                    value: Tensor::cat(&[&past.value, &own.value], 2),
                };
                self.attention.forward(rows, &all, mask, dropout)
            }
            None => self.attention.forward(rows, &own, mask, dropout),
        };
        if num_queries == 0 {
            return (self.text_network.forward(&rows, dropout), own);
        }
        let length = rows.size()[1];
        let mut queries = rows.narrow(1, 0, num_queries); // [B, Q, D]
        if let (Some(attention), Some(image)) = (&self.cross_attention, image) {
            queries = attention.forward(&queries, image, None, dropout);
        }
        let queries = self.query_network.forward(&queries, dropout);
        if length == num_queries {
            return (queries, own);
        }
        let text = rows.narrow(1, num_queries, length - num_queries); // [B, T, D]
        let text = self.text_network.forward(&text, dropout);
        (Tensor::cat(&[queries, text], 1), own)
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

    fn forward(&self, rows: &Tensor, dropout: Dropout) -> Tensor {
        let hidden = self.intermediate.forward(rows).gelu("none");
        let output = dropout.apply(self.output.forward(&hidden));
        self.norm.forward(&(output + rows))
    }
}
