//! Vision towers: pixels `[B, 3, S, S]` → image features `[B, M, E]`, M = (S / patch)² + 1.
//!
//! All three put a class token before the patches, end without a norm (the model's `ln_vision`
//! follows) and carry their parameters under `visual_encoder.` with the names of LAVIS.

mod clip;
mod eva;
mod parts;
mod small;

use qf_config::model::VisionConfig;
use tch::Tensor;

use crate::error::{check_floats, check_shape, ModelError};
use crate::low::LowCopies;
use crate::params::Scope;

use clip::ClipVit;
use eva::EvaVit;
use parts::{drop_paths, DropPath};
use small::SmallVit;

/// What turns pixels into image features.
#[derive(Debug)]
pub(crate) enum VisionTower {
    Eva(EvaVit),
    Clip(ClipVit),
    Small(SmallVit),
    Features,
}

impl VisionTower {
    pub(crate) fn new(scope: Scope<'_>, config: &VisionConfig) -> Result<VisionTower, ModelError> {
        Ok(match config {
            VisionConfig::Eva(vit) => {
                VisionTower::Eva(EvaVit::new(scope.trainable(vit.trainable), vit)?)
            }
            VisionConfig::Clip(vit) => {
                VisionTower::Clip(ClipVit::new(scope.trainable(vit.trainable), vit)?)
            }
            VisionConfig::Small(vit) => {
                VisionTower::Small(SmallVit::new(scope.trainable(vit.trainable), vit)?)
            }
            VisionConfig::Features(_) => VisionTower::Features,
        })
    }

    /// Image features `[B, M, E]` before `ln_vision`; given features pass through. Drop path acts
    /// with `train`.
    pub(crate) fn forward(
        &self,
        input: &Tensor,
        config: &VisionConfig,
        train: bool,
    ) -> Result<Tensor, ModelError> {
        check_input(input, config)?;
        let paths = drop_paths(input, config, train)?;
        let rows = self.embed(input)?;
        if let VisionTower::Eva(vit) = self {
            if let Some(rows) = vit.frozen_blocks(&rows)? {
                return Ok(rows);
            }
        }
        let mut blocks = paths.iter().enumerate();
        blocks.try_fold(rows, |rows, (index, path)| self.block(index, &rows, path))
    }

    /// [`VisionTower::forward`] that keeps the rows before each block alone, instead of all that
    /// their gradients need: the features are a leaf, and [`Recomputed::backward`] takes their
    /// gradient to the parameters, with every block computed once more (Chen et al., arXiv
    /// 1604.06174).
    pub(crate) fn forward_recomputed(
        &self,
        input: &Tensor,
        config: &VisionConfig,
        train: bool,
    ) -> Result<Recomputed, ModelError> {
        check_input(input, config)?;
        let paths = drop_paths(input, config, train)?;
        tch::no_grad(|| {
            let mut rows = vec![self.embed(input)?];
            for (index, path) in paths.iter().enumerate() {
                if let Some(last) = rows.last() {
                    let next = self.block(index, last, path)?;
                    rows.push(next);
                }
            }
            let features = rows.pop().unwrap_or_else(|| input.shallow_clone());
            Ok(Recomputed {
                features: features.f_detach()?.f_set_requires_grad(true)?,
                input: input.shallow_clone(),
                rows,
                paths,
            })
        })
    }

    /// Computes products in 16 bits from here on, of a tower that is not trained and whose matrices are
    /// kept so; in 32 without `copies`.
    pub(crate) fn use_copies(&mut self, copies: Option<&mut LowCopies>) -> Result<(), ModelError> {
        match self {
            VisionTower::Eva(vit) => vit.use_copies(copies),
            VisionTower::Clip(vit) => vit.use_copies(copies),
            VisionTower::Small(vit) => vit.use_copies(copies),
            VisionTower::Features => Ok(()),
        }
    }

    /// Another handle of a tower that is not trained, for another thread.
    pub(crate) fn frozen_clone(&self) -> VisionTower {
        match self {
            VisionTower::Eva(vit) => VisionTower::Eva(vit.frozen_clone()),
            VisionTower::Clip(vit) => VisionTower::Clip(vit.frozen_clone()),
            VisionTower::Small(vit) => VisionTower::Small(vit.frozen_clone()),
            VisionTower::Features => VisionTower::Features,
        }
    }

    fn embed(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            VisionTower::Eva(vit) => vit.embed(input),
            VisionTower::Clip(vit) => vit.embed(input),
            VisionTower::Small(vit) => vit.embed(input),
            VisionTower::Features => Ok(input.shallow_clone()),
        }
    }

    fn block(
        &self,
        index: usize,
        rows: &Tensor,
        drop_path: &DropPath,
    ) -> Result<Tensor, ModelError> {
        match self {
            VisionTower::Eva(vit) => vit.block(index, rows, drop_path),
            VisionTower::Clip(vit) => vit.block(index, rows, drop_path),
            VisionTower::Small(vit) => vit.block(index, rows, drop_path),
            VisionTower::Features => Ok(rows.shallow_clone()),
        }
    }
}

/// A forward pass of the tower whose inside is computed again for its gradients.
#[derive(Debug)]
pub(crate) struct Recomputed {
    /// `[B, M, E]`, a leaf.
    pub(crate) features: Tensor,
    input: Tensor,
    /// Before each block.
    rows: Vec<Tensor>,
    paths: Vec<DropPath>,
}

impl Recomputed {
    /// Adds to the parameters' gradients what the features' gradient asks for. To be called once,
    /// after the backward pass of the loss.
    pub(crate) fn backward(&self, tower: &VisionTower) -> Result<(), ModelError> {
        let mut gradient = self.features.f_grad()?;
        for (index, (rows, path)) in self.rows.iter().zip(&self.paths).enumerate().rev() {
            if !gradient.defined() {
                return Ok(());
            }
            let leaf = rows.f_detach()?.f_set_requires_grad(true)?;
            back_propagate(&tower.block(index, &leaf, path)?, &gradient)?;
            gradient = leaf.f_grad()?;
        }
        match gradient.defined() {
            true => back_propagate(&tower.embed(&self.input)?, &gradient),
            false => Ok(()),
        }
    }
}

/// The backward pass of `output` from its gradient.
fn back_propagate(output: &Tensor, gradient: &Tensor) -> Result<(), ModelError> {
    // tch's backward starts from a scalar; this one's gradient is the given one.
    let product = output.f_mul(gradient)?.f_sum(output.f_kind()?)?;
    Ok(product.f_backward()?)
}

fn check_input(input: &Tensor, config: &VisionConfig) -> Result<(), ModelError> {
    match config.vit() {
        Some(vit) => {
            let side = vit.image_size;
            let names = format!("[B, 3, {side}, {side}]");
            check_shape("pixels", input, &[-1, 3, side, side], &names)?;
            check_floats("pixels", input)?;
        }
        None => {
            let width = config.width();
            let names = format!("[B, M, {width}]");
            check_shape("image features", input, &[-1, -1, width], &names)?;
            check_floats("image features", input)?;
        }
    }
    Ok(())
}

/// How a table of patch positions is resampled to another grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionInterpolation {
    /// The EVA towers' rule: bicubic, corners not aligned.
    Eva,
    /// The CLIP towers' rule: bicubic, corners aligned.
    Clip,
}

/// Resamples position embeddings `[1 + g², E]` or `[1, 1 + g², E]` to `grid` × `grid` patches.
///
/// The class token's position is kept; the grid is resampled in 32 bits by plain bicubic
/// interpolation without antialiasing. The result has the rank and kind of the input.
///
/// # Errors
/// [`ModelError::Shape`] for a table that is no square grid and one class token.
pub fn interpolate_positions(
    positions: &Tensor,
    grid: i64,
    rule: PositionInterpolation,
) -> Result<Tensor, ModelError> {
    let size = positions.size();
    let unfit = || ModelError::Shape {
        what: "position embeddings",
        expected: "[1 + g², E] or [1, 1 + g², E]".to_owned(),
        got: size.clone(),
    };
    let (tokens, width) = match size[..] {
        [tokens, width] | [1, tokens, width] => (tokens, width),
        _ => return Err(unfit()),
    };
    let old_grid = ((tokens - 1).max(0) as f64).sqrt().round() as i64;
    if old_grid < 1 || old_grid * old_grid != tokens - 1 || width < 1 {
        return Err(unfit());
    }
    if grid < 1 {
        return Err(ModelError::Input {
            what: "grid of position embeddings",
            message: format!("{grid} patches along a side; take 1 or more"),
        });
    }
    if grid == old_grid {
        return Ok(positions.shallow_clone());
    }
    let table = positions.f_reshape([tokens, width])?;
    let patches = table
        .f_narrow(0, 1, tokens - 1)?
        .f_to_kind(tch::Kind::Float)?
        .f_reshape([1, old_grid, old_grid, width])?
        .f_permute([0, 3, 1, 2])? // [1, E, g, g]
        .f_upsample_bicubic2d(
            [grid, grid],
            rule == PositionInterpolation::Clip,
            None,
            None,
        )?
        .f_permute([0, 2, 3, 1])?
        .f_reshape([grid * grid, width])?
        .f_to_kind(positions.f_kind()?)?;
    let resampled = Tensor::f_cat(&[table.f_narrow(0, 0, 1)?, patches], 0)?;
    Ok(match size.len() {
        2 => resampled,
        _ => resampled.f_unsqueeze(0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use qf_config::model::{FeaturesConfig, VitConfig};
    use tch::{Device, Kind};

    fn sizes() -> VitConfig {
        VitConfig {
            image_size: 28,
            patch_size: 7,
            width: 24,
            depth: 2,
            heads: 3,
            mlp: 40,
            trainable: true,
            drop_path: 0.0,
            checkpoint_activations: false,
        }
    }

    #[test]
    fn towers_give_one_row_per_patch_and_one_for_the_class() {
        for config in [
            VisionConfig::Eva(sizes()),
            VisionConfig::Clip(sizes()),
            VisionConfig::Small(sizes()),
        ] {
            let mut store = ParamStore::new(Device::Cpu, 0);
            let tower = VisionTower::new(store.root().sub("visual_encoder"), &config).unwrap();
            let pixels = Tensor::ones([2, 3, 28, 28], (Kind::Float, Device::Cpu));
            let features = tower.forward(&pixels, &config, false).unwrap();
            assert_eq!(features.size(), [2, 17, 24]);
            assert!(features.isfinite().all().int64_value(&[]) == 1);
            // Every parameter is used.
            features.square().sum(Kind::Float).backward();
            for param in store.named_parameters() {
                assert!(param.tensor.grad().defined(), "{config:?} {}", param.name);
            }
            let wide = Tensor::ones([2, 3, 28, 35], (Kind::Float, Device::Cpu));
            assert!(tower.forward(&wide, &config, false).is_err());
            assert!(tower
                .forward(&pixels.to_kind(Kind::Uint8), &config, false)
                .is_err());
        }
    }

    #[test]
    fn recomputation_meets_the_same_paths() {
        let config = VisionConfig::Small(VitConfig {
            depth: 4,
            drop_path: 0.7,
            ..sizes()
        });
        let mut store = ParamStore::new(Device::Cpu, 0);
        let tower = VisionTower::new(store.root().sub("visual_encoder"), &config).unwrap();
        let options = (Kind::Float, Device::Cpu);
        let pixels = (Tensor::arange(6 * 3 * 28 * 28, options) * 0.37).sin();
        let pixels = pixels.view([6, 3, 28, 28]);
        let recomputed = tower.forward_recomputed(&pixels, &config, true).unwrap();
        assert!(recomputed.paths[0].0.is_none() && recomputed.paths[3].0.is_some());
        let gradients = || -> Vec<Tensor> {
            let params = store.named_parameters().iter();
            params
                .map(|param| {
                    let gradient = param.tensor.grad().copy();
                    param.tensor.shallow_clone().zero_grad();
                    gradient
                })
                .collect()
        };
        recomputed.features.square().sum(Kind::Float).backward();
        recomputed.backward(&tower).unwrap();
        let got = gradients();
        let mut rows = tower.embed(&pixels).unwrap();
        for (index, path) in recomputed.paths.iter().enumerate() {
            rows = tower.block(index, &rows, path).unwrap();
        }
        assert!(rows.allclose(&recomputed.features, 1e-5, 1e-5, false));
        rows.square().sum(Kind::Float).backward();
        for (a, b) in got.iter().zip(&gradients()) {
            assert!(a.allclose(b, 1e-3, 1e-4, false));
        }
    }

    #[test]
    fn paths_are_dropped_in_training_alone_and_keep_the_mean() {
        let mut vit = sizes();
        (vit.depth, vit.drop_path) = (5, 0.4);
        let input = Tensor::zeros([20_000, 1], (Kind::Float, Device::Cpu));
        let config = VisionConfig::Small(vit.clone());
        for path in drop_paths(&input, &config, false).unwrap() {
            assert!(path.0.is_none());
        }
        for (index, path) in drop_paths(&input, &config, true)
            .unwrap()
            .iter()
            .enumerate()
        {
            let expected = 0.1 * index as f64;
            match &path.0 {
                None => assert_eq!(index, 0),
                Some(factors) => {
                    for factor in factors {
                        let dropped = factor.eq(0.0).to_kind(Kind::Float).mean(Kind::Float);
                        // Five standard deviations of a share of 20,000: 0.0177.
                        assert!((dropped.double_value(&[]) - expected).abs() < 0.018);
                        let mean = factor.mean(Kind::Float).double_value(&[]);
                        assert!((mean - 1.0).abs() < 0.03, "{mean}");
                    }
                }
            }
        }
        vit.trainable = false;
        let frozen = drop_paths(&input, &VisionConfig::Small(vit), true).unwrap();
        assert!(frozen.iter().all(|path| path.0.is_none()));
    }

    #[test]
    fn given_features_pass_through() {
        let config = VisionConfig::Features(FeaturesConfig { width: 5 });
        let mut store = ParamStore::new(Device::Cpu, 0);
        let tower = VisionTower::new(store.root(), &config).unwrap();
        assert!(store.named_parameters().is_empty());
        let features = Tensor::ones([2, 4, 5], (Kind::Float, Device::Cpu));
        assert_eq!(tower.forward(&features, &config, false).unwrap(), features);
        let narrow = Tensor::ones([2, 4, 3], (Kind::Float, Device::Cpu));
        let error = tower
            .forward(&narrow, &config, false)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "image features: expected shape [B, M, 5], got [2, 4, 3]"
        );
    }

    #[test]
    fn positions_of_a_linear_ramp_stay_a_ramp() {
        // With aligned corners bicubic interpolation is exact on a ramp away from the border; the
        // corners themselves are kept.
        let ramp = Tensor::arange(17, (Kind::Float, Device::Cpu)).view([17, 1]);
        let wider = interpolate_positions(&ramp, 7, PositionInterpolation::Clip).unwrap();
        assert_eq!(wider.size(), [50, 1]);
        for (row, expected) in [(0, 0.0), (1, 1.0), (7, 4.0), (43, 13.0), (49, 16.0)] {
            assert!(
                (wider.double_value(&[row, 0]) - expected).abs() < 1e-5,
                "{row}"
            );
        }
        let same = interpolate_positions(&ramp, 4, PositionInterpolation::Eva).unwrap();
        assert_eq!(same, ramp);
    }

    #[test]
    fn tables_that_are_no_grid_are_refused() {
        for shape in [vec![16, 3], vec![0, 3], vec![2, 17, 3], vec![17]] {
            let table = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
            let result = interpolate_positions(&table, 7, PositionInterpolation::Eva);
            assert!(matches!(result, Err(ModelError::Shape { .. })), "{shape:?}");
        }
    }
}
