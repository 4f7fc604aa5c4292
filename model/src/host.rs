//! Batches from host memory to the device.

use std::sync::Arc;

use qf_pipeline::augment::{normalise_batch, CLIP_MEAN, CLIP_STD};
use qf_pipeline::batch::{Batch, HostAllocator, PlainAllocator};
use qf_pipeline::pixels::PlanarBatch;
use qf_pipeline::text::TokenRows;
use tch::{Device, Kind, Tensor};

use crate::accelerator::OwnStream;
use crate::error::ModelError;

/// A batch on the device.
#[derive(Debug)]
pub struct DeviceBatch {
    /// `[B, 3, S, S]` f32, normalised by the CLIP mean and deviation.
    pub images: Tensor,
    /// `[N, T]` i64.
    pub token_ids: Tensor,
    /// `[N, T]` i64.
    pub attention_mask: Tensor,
    /// `[B]` i64: which image each row shows, where the loader tells.
    pub image_ids: Option<Tensor>,
}

impl DeviceBatch {
    /// Copies images and texts to `device`, the pixels normalised. Done when it returns.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn of(
        pixels: PlanarBatch<'_>,
        tokens: &TokenRows,
        device: Device,
    ) -> Result<DeviceBatch, ModelError> {
        let (ids, mask) = text_tensors(tokens)?;
        Ok(DeviceBatch {
            images: upload_pixels(pixels, device)?,
            token_ids: ids.f_to_device(device)?,
            attention_mask: mask.f_to_device(device)?,
            image_ids: None,
        })
    }

    /// Keeps the first `columns` columns of ids and mask: `[N, L]`, `L = columns`. Masked keys and unread
    /// rows change no loss and no gradient, and most captions are much shorter than `T`. With several
    /// ranks those of the longest text of any, so that what they gather has one shape.
    ///
    /// # Errors
    /// [`ModelError::Torch`] for more columns than there are, or when the device is out of memory.
    pub fn with_text_columns(self, columns: i64) -> Result<DeviceBatch, ModelError> {
        let [token_ids, attention_mask] = self.text_columns(columns)?;
        Ok(DeviceBatch {
            token_ids: token_ids.f_contiguous()?,
            attention_mask: attention_mask.f_contiguous()?,
            images: self.images,
            image_ids: self.image_ids,
        })
    }

    /// The first `columns` columns of ids and mask, views.
    pub(crate) fn text_columns(&self, columns: i64) -> Result<[Tensor; 2], ModelError> {
        Ok([
            self.token_ids.f_narrow(1, 0, columns)?,
            self.attention_mask.f_narrow(1, 0, columns)?,
        ])
    }
}

/// Tokens of each text of a batch, N of them.
pub fn text_lengths(batch: &Batch) -> Vec<i64> {
    batch.tokens.lengths().map(|length| length as i64).collect()
}

/// Copies a batch to `device`, its pixels normalised. Done when it returns.
///
/// # Errors
/// [`ModelError::Torch`] when the device is out of memory.
pub fn upload(batch: &Batch, device: Device) -> Result<DeviceBatch, ModelError> {
    let ids = id_tensor(batch)?;
    let ids = ids.map(|ids| ids.f_to_device(device)).transpose()?;
    Ok(DeviceBatch {
        image_ids: ids,
        ..DeviceBatch::of(batch.pixels(), &batch.tokens, device)?
    })
}

/// The ids of a batch's images on the host, `[B]` i64, where it has them.
fn id_tensor(batch: &Batch) -> Result<Option<Tensor>, ModelError> {
    match batch.image_ids[..] {
        [] => Ok(None),
        ref ids => Ok(Some(Tensor::f_from_slice(ids)?)),
    }
}

/// [`upload`] by way of this thread's own stream: beside what the device computes. The stream that
/// reads it has to [say so](crate::accelerator::use_here).
pub(crate) fn upload_on(stream: &OwnStream, batch: &Batch) -> Result<DeviceBatch, ModelError> {
    let (ids, mask) = text_tensors(&batch.tokens)?;
    let uploaded = DeviceBatch {
        images: pixels_to(batch.pixels(), stream.device(), |pixels| {
            stream.copy(pixels)
        })?,
        token_ids: stream.copy(&ids)?,
        attention_mask: stream.copy(&mask)?,
        image_ids: id_tensor(batch)?.map(|ids| stream.copy(&ids)).transpose()?,
    };
    stream.wait()?;
    Ok(uploaded)
}

/// Copies images to `device`, normalised: `[B, 3, S, S]` f32. A quarter of the bytes travel, and the
/// numbers are those of the host.
///
/// # Errors
/// [`ModelError::Torch`] when the device is out of memory.
pub fn upload_pixels(pixels: PlanarBatch<'_>, device: Device) -> Result<Tensor, ModelError> {
    pixels_to(pixels, device, |pixels| Ok(pixels.f_to_device(device)?))
}

/// Ids and mask of texts on a device: `[N, T]` i64 each.
///
/// # Errors
/// [`ModelError::Torch`] when the device has no room.
pub fn text_batch(tokens: &TokenRows, device: Device) -> Result<(Tensor, Tensor), ModelError> {
    let (ids, mask) = text_tensors(tokens)?;
    Ok((ids.f_to_device(device)?, mask.f_to_device(device)?))
}

/// Ids and mask of texts on the host: `[N, T]` i64 each.
fn text_tensors(tokens: &TokenRows) -> Result<(Tensor, Tensor), ModelError> {
    let shape = [tokens.len() as i64, tokens.text_len() as i64];
    let tensor = |entries: &[i64]| Tensor::f_from_slice(entries)?.f_view(shape);
    Ok((tensor(tokens.ids())?, tensor(tokens.mask())?))
}

/// Normalised pixels on `device`, where `copy` brings them, as u8, unless they are there.
fn pixels_to(
    pixels: PlanarBatch<'_>,
    device: Device,
    copy: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
) -> Result<Tensor, ModelError> {
    let shape = pixels.shape().map(|size| size as i64);
    match device {
        // Plain code: libtorch's would start threads of its own in the thread that uploads.
        Device::Cpu => memory::filled(&shape, |out| normalise_batch(pixels, out)),
        _ => memory::with_view(pixels.as_bytes(), &shape, |view| normalise(&copy(view)?)),
    }
}

/// `(x / 255 - mean) / std` per channel: `[B, 3, S, S]` u8 → f32, as torchvision computes it.
///
/// The divisors are tensors: by a number a GPU multiplies with its reciprocal, which is not the same.
fn normalise(pixels: &Tensor) -> Result<Tensor, ModelError> {
    let channels = |values: &[f32; 3]| -> Result<Tensor, ModelError> {
        Ok(Tensor::f_from_slice(values)?
            .f_view([1, 3, 1, 1])?
            .f_to_device(pixels.device())?)
    };
    let mut scaled = pixels
        .f_to_kind(Kind::Float)?
        .f_divide(&channels(&[255.0; 3])?)?;
    Ok(scaled
        .f_sub_(&channels(&CLIP_MEAN)?)?
        .f_divide_(&channels(&CLIP_STD)?)?)
}

/// Page-locked memory for batches that go to a GPU, ordinary memory for the CPU.
pub fn batch_allocator(device: Device) -> Arc<dyn HostAllocator> {
    match device {
        Device::Cuda(_) => Arc::new(memory::PinnedAllocator(device)),
        _ => Arc::new(PlainAllocator),
    }
}

#[allow(unsafe_code)]
mod memory {
    //! Slices over tensors and tensors over slices.

    use qf_pipeline::batch::{HostAllocator, HostBuffer};
    use tch::{Device, Kind, Tensor};

    use crate::error::ModelError;

    /// Allocates memory that the device can copy from directly.
    pub(super) struct PinnedAllocator(pub(super) Device);

    struct PinnedBuffer {
        /// Owns the memory.
        _tensor: std::sync::Mutex<Tensor>,
        data: *mut u8,
        len: usize,
    }

    // SAFETY: the memory belongs to this value alone and is only reached through `&self` for
    // reading and `&mut self` for writing, like that of a `Vec<u8>`.
    unsafe impl Send for PinnedBuffer {}
    // SAFETY: as above.
    unsafe impl Sync for PinnedBuffer {}

    impl HostBuffer for PinnedBuffer {
        fn as_slice(&self) -> &[u8] {
            // SAFETY: `data` points to `len` initialised bytes that live as long as `self`.
            unsafe { std::slice::from_raw_parts(self.data, self.len) }
        }
        fn as_mut_slice(&mut self) -> &mut [u8] {
            // SAFETY: as above, and `&mut self` excludes any other access.
            unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
        }
    }

    impl HostAllocator for PinnedAllocator {
        fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String> {
            // An empty tensor's pointer is null.
            let size = i64::try_from(len.max(1)).map_err(|error| error.to_string())?;
            let tensor = Tensor::f_zeros([size], (Kind::Uint8, Device::Cpu))
                .and_then(|tensor| tensor.f_pin_memory(self.0))
                .map_err(|error| format!("no page-locked memory ({error})"))?;
            let data = tensor.data_ptr().cast::<u8>();
            Ok(Box::new(PinnedBuffer {
                _tensor: std::sync::Mutex::new(tensor),
                data,
                len,
            }))
        }
    }

    /// A new f32 tensor on the host that `fill` writes.
    pub(super) fn filled(
        shape: &[i64; 4],
        fill: impl FnOnce(&mut [f32]),
    ) -> Result<Tensor, ModelError> {
        let tensor = Tensor::f_zeros(shape, (Kind::Float, Device::Cpu))?;
        if tensor.numel() == 0 {
            // Its pointer is null.
            return Ok(tensor);
        }
        // SAFETY: the memory of a new, contiguous tensor: that many initialised numbers, which
        // nobody else reaches.
        let numbers = unsafe {
            std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
        };
        fill(numbers);
        Ok(tensor)
    }

    /// Runs `with` on a u8 tensor over `pixels`, as many as the shape says. `with` must not keep
    /// the tensor.
    pub(super) fn with_view(
        pixels: &[u8],
        shape: &[i64; 4],
        with: impl FnOnce(&Tensor) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        debug_assert_eq!(pixels.len() as i64, shape.iter().product::<i64>());
        // SAFETY: the tensor covers exactly `pixels`, is only read, and is dropped before this
        // function returns, while `pixels` is borrowed.
        let view =
            unsafe { Tensor::f_from_blob(pixels.as_ptr(), shape, &[], Kind::Uint8, Device::Cpu)? };
        with(&view)
    }
}

#[cfg(test)]
mod tests {
    use qf_config::model::FeaturesConfig;

    use super::*;
    use crate::{
        Blip2Qformer, ModelConfig, NegativeSampling, SingleProcess, StepInput, VisionConfig,
    };

    #[test]
    fn padding_columns_change_neither_losses_nor_gradients() {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
        config.qformer.encoder_width = 24;
        config.qformer.vocab_size = 50;
        config.qformer.dec_token_id = 49;
        let mask: Vec<i64> = [3usize, 5, 4]
            .iter()
            .flat_map(|&length| (0..12).map(move |at| i64::from(at < length)))
            .collect();
        let ids: Vec<i64> = mask
            .iter()
            .enumerate()
            .map(|(at, &mask)| mask * (at as i64 % 40 + 3))
            .collect();
        let negatives = Tensor::from_slice(&[1i64, 2, 0]);
        let run = |length: i64| {
            let model = Blip2Qformer::new(&config, Device::Cpu, 3).unwrap();
            let features = Tensor::arange(3 * 7 * 24, (Kind::Float, Device::Cpu)) * 0.7;
            let features = features.sin().view([3, 7, 24]);
            let cut = |values: &[i64]| {
                Tensor::from_slice(values)
                    .view([3, 12])
                    .narrow(1, 0, length)
            };
            let output = model
                .forward_losses(
                    &StepInput {
                        image_embeds: &model.encode_image(&features).unwrap(),
                        token_ids: &cut(&ids),
                        attention_mask: &cut(&mask),
                        image_ids: None,
                    },
                    NegativeSampling::Given {
                        image_idx: &negatives,
                        text_idx: &negatives,
                    },
                    &SingleProcess,
                    true,
                )
                .unwrap();
            output.loss.backward();
            let gradients: Vec<Tensor> = model
                .params()
                .trainable()
                .map(|param| param.tensor.grad())
                .collect();
            (f64::try_from(output.loss).unwrap(), gradients)
        };
        let (whole, cut) = (run(12), run(5));
        assert!(
            (whole.0 - cut.0).abs() <= 1e-6 * whole.0.abs(),
            "{} {}",
            whole.0,
            cut.0
        );
        for (whole, cut) in whole.1.iter().zip(&cut.1) {
            if whole.defined() || cut.defined() {
                assert!(whole.allclose(cut, 1e-4, 1e-6, false));
            }
        }
    }

    #[test]
    fn normalising_on_the_device_gives_the_bits_of_the_host() {
        // Two images; a value in each channel that no other channel has at that pixel.
        let planar: Vec<u8> = (0..6u8)
            .flat_map(|plane| {
                (0..=255u8).map(move |value| value.wrapping_mul(3).wrapping_add(37 * plane))
            })
            .collect();
        let batch = PlanarBatch::new(16, &planar).unwrap();
        let mut expected = vec![0f32; planar.len()];
        normalise_batch(batch, &mut expected);
        let pixels = Tensor::from_slice(&planar).view([2, 3, 16, 16]);
        let got: Vec<f32> = normalise(&pixels).unwrap().view([-1]).try_into().unwrap();
        assert_eq!(got, expected);
        // The CPU's batches are normalised on the host.
        let got = upload_pixels(batch, Device::Cpu).unwrap();
        assert_eq!(got.size(), [2, 3, 16, 16]);
        assert_eq!(Vec::<f32>::try_from(got.view([-1])).unwrap(), expected);
    }

    #[test]
    fn no_image_is_a_batch_of_none() {
        let none = PlanarBatch::new(16, &[]).unwrap();
        let got = upload_pixels(none, Device::Cpu).unwrap();
        assert_eq!(got.size(), [0, 3, 16, 16]);
    }
}
