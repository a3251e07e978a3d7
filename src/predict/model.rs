//! A trained model as numbers, and the file it is kept in.
//!
//! The file is self-contained and small (tens of kB), little-endian throughout:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `PRESNAPM` |
//! | 8 | 4 | version of this layout, 1 |
//! | 12 | 4 | number of features |
//! | 16 | 4 | size of the hidden state |
//! | 20 | 4 | number of bins |
//! | 24 | 8 | fingerprint of the feature set |
//! | 32 | 4 | length of a tick in ms |
//! | 36 | 4 | number of the values that follow |
//! | 40 | 4 n | values, `f32`: the fields of [`Model`] in their order |
//! | 40 + 4 n | 4 | CRC-32C of all before it |
//!
//! A file that is damaged, of another version, or made for other features is refused: its numbers
//! would be wrong without looking wrong.

use std::path::{Path, PathBuf};

use super::hazard::BINS;
use crate::monitor::{FEATURE_NAMES, FEATURES};

/// First bytes of a model file.
pub const MAGIC: [u8; 8] = *b"PRESNAPM";

/// Version of the layout.
pub const VERSION: u32 = 1;

const HEADER_BYTES: usize = 40;

/// Larger than any model that could keep up with its tick; bounds what a file can make us read.
const FILE_BYTES_MAX: usize = 16 << 20;

/// What a model needs to fit to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Features per row.
    pub features: usize,
    /// Size of the hidden state.
    pub hidden: usize,
}

/// All numbers of a trained model. Matrices are row-major, `[from, to]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Sizes of all that follows.
    pub shape: Shape,
    /// Length of the ticks it was trained with.
    pub tick_ms: u32,
    /// `[features]`: subtracted from each feature first.
    pub mean: Vec<f32>,
    /// `[features]`: then multiplied with.
    pub scale: Vec<f32>,
    /// `[features, 4 hidden]`: from features to the gates input, forget, output and cell.
    pub input: Vec<f32>,
    /// `[hidden, 4 hidden]`: from the hidden state to the gates.
    pub recurrent: Vec<f32>,
    /// `[4 hidden]`.
    pub bias: Vec<f32>,
    /// `[hidden, BINS]`: from the hidden state to the logits of the bins.
    pub head: Vec<f32>,
    /// `[features, BINS]`: from the features straight to the logits.
    pub skip: Vec<f32>,
    /// `[BINS]`.
    pub head_bias: Vec<f32>,
    /// `[features, BINS]`: the linear baseline, trained on the same data.
    pub logistic: Vec<f32>,
    /// `[BINS]`.
    pub logistic_bias: Vec<f32>,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read or written.
    #[error("cannot access model {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What a file holds does not serve.
    #[error("model {path}: {error}; name one that presnap train wrote")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ModelError>,
    },
    /// Not a model file at all.
    #[error("no presnap model: it starts with other bytes")]
    Foreign,
    /// A model file of another version.
    #[error("model of version {found}, this presnap reads version {VERSION}: train it anew")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// Shorter or longer than it says.
    #[error("damaged model: {found} bytes, expected {expected}")]
    Length {
        /// Bytes there should be.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Bytes have changed.
    #[error("damaged model: its checksum does not match")]
    Checksum,
    /// A good file that was made for something else.
    #[error("model for other {what}: {found}, this presnap has {expected}: train it anew")]
    Other {
        /// What differs.
        what: &'static str,
        /// What this program has.
        expected: u64,
        /// What the file says.
        found: u64,
    },
    /// A value that no training should give.
    #[error("useless model: value {index} is not a finite number")]
    NotFinite {
        /// Which one.
        index: usize,
    },
}

/// Fingerprint of a set of features: their names in order. FNV-1a, 64 bits.
pub fn fingerprint(names: &[&str]) -> u64 {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The model that ships with presnap.
const SHIPPED: &[u8] = include_bytes!("../../models/default.presnap-model");

/// Texts in the names of the traces that the shipped model was trained on, as models/README.md says:
/// what it reaches on them is no proof of anything.
pub const LEARNED_FROM: [&str; 2] = ["winpc_a", "rocksdb"];

impl Model {
    /// The model that ships with presnap; see `models/README.md`.
    ///
    /// # Errors
    ///
    /// It was made for other features than this program has.
    pub fn shipped() -> Result<Self, ModelError> {
        Self::from_bytes(SHIPPED, FEATURES, fingerprint(&FEATURE_NAMES))
    }

    /// A model of zeros.
    pub fn zeros(shape: Shape, tick_ms: u32) -> Self {
        let [mean, scale, input, recurrent, bias, head, skip, head_bias, logistic, logistic_bias] =
            lengths(shape).map(|len| vec![0.0; len]);
        Self {
            shape,
            tick_ms,
            mean,
            scale,
            input,
            recurrent,
            bias,
            head,
            skip,
            head_bias,
            logistic,
            logistic_bias,
        }
    }

    /// All values, field by field, in their order in the file.
    pub(super) fn weights(&self) -> [&Vec<f32>; PARTS] {
        [
            &self.mean,
            &self.scale,
            &self.input,
            &self.recurrent,
            &self.bias,
            &self.head,
            &self.skip,
            &self.head_bias,
            &self.logistic,
            &self.logistic_bias,
        ]
    }

    /// The same, to be changed.
    pub(super) fn weights_mut(&mut self) -> [&mut Vec<f32>; PARTS] {
        [
            &mut self.mean,
            &mut self.scale,
            &mut self.input,
            &mut self.recurrent,
            &mut self.bias,
            &mut self.head,
            &mut self.skip,
            &mut self.head_bias,
            &mut self.logistic,
            &mut self.logistic_bias,
        ]
    }

    /// The features of one row as the model takes them, appended to `out`: scaled, and kept within
    /// what training has seen, for a network may answer anything to numbers far outside.
    pub fn normalise(&self, features: &[f32], out: &mut Vec<f32>) {
        out.extend(
            features
                .iter()
                .zip(&self.mean)
                .zip(&self.scale)
                .map(|((x, mean), scale)| ((x - mean) * scale).clamp(-NORMAL_MAX, NORMAL_MAX)),
        );
    }

    /// Tells models apart: the checksum at the end of its file.
    pub fn checksum(&self) -> u32 {
        let bytes = self.to_bytes(fingerprint(&FEATURE_NAMES));
        crc32c::crc32c(&bytes[..bytes.len() - 4])
    }

    /// The model as the bytes of a file.
    pub fn to_bytes(&self, feature_set: u64) -> Vec<u8> {
        let count: usize = self.weights().iter().map(|part| part.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 * count + 4);
        bytes.extend(MAGIC);
        for value in [VERSION, self.shape.features as u32, self.shape.hidden as u32, BINS as u32] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(feature_set.to_le_bytes());
        bytes.extend(self.tick_ms.to_le_bytes());
        bytes.extend((count as u32).to_le_bytes());
        for value in self.weights().into_iter().flatten() {
            bytes.extend(value.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Reads the bytes of a file, made for `features` features with this fingerprint.
    ///
    /// # Errors
    ///
    /// See [`ModelError`]; nothing of a file in which any byte differs is used.
    pub fn from_bytes(bytes: &[u8], features: usize, feature_set: u64) -> Result<Self, ModelError> {
        if bytes.len() < MAGIC.len() || bytes[..MAGIC.len()] != MAGIC {
            return Err(ModelError::Foreign);
        }
        if bytes.len() < HEADER_BYTES + 4 {
            return Err(ModelError::Length { expected: HEADER_BYTES + 4, found: bytes.len() });
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        // Before the checksum: another version may keep it elsewhere.
        if word(8) != VERSION {
            return Err(ModelError::Version { found: word(8) });
        }
        let expected = HEADER_BYTES + 4 * word(36) as usize + 4;
        if bytes.len() != expected || expected > FILE_BYTES_MAX {
            return Err(ModelError::Length { expected, found: bytes.len() });
        }
        let (body, checksum) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(body).to_le_bytes() != checksum {
            return Err(ModelError::Checksum);
        }
        let other = |what, expected, found| {
            if expected == found {
                Ok(())
            } else {
                Err(ModelError::Other { what, expected, found })
            }
        };
        other("numbers of features", features as u64, u64::from(word(12)))?;
        other("bins", BINS as u64, u64::from(word(20)))?;
        let found_set = u64::from(word(24)) | u64::from(word(28)) << 32;
        other("features", feature_set, found_set)?;
        let shape = Shape { features, hidden: word(16) as usize };
        let count = lengths(shape).iter().fold(0_usize, |sum, len| sum.saturating_add(*len));
        other("sizes", count as u64, u64::from(word(36)))?;
        let mut model = Self::zeros(shape, word(32));
        let mut values = body[HEADER_BYTES..].chunks_exact(4).enumerate();
        for slot in model.weights_mut().into_iter().flatten() {
            let (index, value) = values.next().expect("counted above");
            *slot = f32::from_le_bytes(value.try_into().expect("4 bytes"));
            if !slot.is_finite() {
                return Err(ModelError::NotFinite { index });
            }
        }
        Ok(model)
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// As [`from_bytes`](Self::from_bytes), or that the file cannot be read.
    pub fn load(path: &Path, features: usize, feature_set: u64) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(io)?.len();
        let parsed = if length > FILE_BYTES_MAX as u64 {
            Err(ModelError::Length { expected: FILE_BYTES_MAX, found: length as usize })
        } else {
            Self::from_bytes(&std::fs::read(path).map_err(io)?, features, feature_set)
        };
        parsed.map_err(|error| ModelError::File { path: path.to_owned(), error: Box::new(error) })
    }

    /// Writes a file, in place of the one that may be there: a reader sees the old or the new one.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn save(&self, path: &Path, feature_set: u64) -> Result<(), ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let beside = path.with_extension("new");
        std::fs::write(&beside, self.to_bytes(feature_set)).map_err(io)?;
        std::fs::rename(&beside, path).map_err(io)
    }
}

/// Largest scaled feature either way.
const NORMAL_MAX: f32 = 6.0;

const PARTS: usize = 10;

/// Lengths of the fields of [`Model`] in order; saturating, for sizes come from files.
fn lengths(shape: Shape) -> [usize; PARTS] {
    let Shape { features, hidden } = shape;
    let gates = hidden.saturating_mul(4);
    [
        features,
        features,
        features.saturating_mul(gates),
        hidden.saturating_mul(gates),
        gates,
        hidden.saturating_mul(BINS),
        features * BINS,
        BINS,
        features * BINS,
        BINS,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { features: 3, hidden: 4 };
    const SET: u64 = 0x1234_5678_9abc_def0;

    fn model() -> Model {
        let mut model = Model::zeros(SHAPE, 1000);
        for (index, value) in model.weights_mut().into_iter().flatten().enumerate() {
            *value = index as f32 / 7.0 - 3.0;
        }
        model
    }

    fn read(bytes: &[u8]) -> Result<Model, ModelError> {
        Model::from_bytes(bytes, SHAPE.features, SET)
    }

    #[test]
    fn a_file_gives_back_what_was_put_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.presnap-model");
        model().save(&path, SET).unwrap();
        model().save(&path, SET).unwrap();
        assert_eq!(Model::load(&path, SHAPE.features, SET).unwrap(), model());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = dir.path().join("b");
        let error = Model::load(&missing, SHAPE.features, SET).unwrap_err();
        assert!(error.to_string().contains("b: "), "{error}");
        std::fs::write(&missing, "no model").unwrap();
        let error = Model::load(&missing, SHAPE.features, SET).unwrap_err().to_string();
        assert!(
            error.contains(missing.to_str().unwrap()) && error.contains("no presnap"),
            "{error}"
        );
    }

    #[test]
    fn the_shipped_model_fits_this_program() {
        let model = Model::shipped().unwrap();
        assert_eq!(model.tick_ms, 1000);
    }

    #[test]
    fn any_damaged_byte_is_noticed() {
        let good = model().to_bytes(SET);
        for index in 0..good.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[index] ^= flip;
                assert!(read(&bytes).is_err(), "byte {index} xor {flip:#x} was not noticed");
            }
        }
    }

    #[test]
    fn any_missing_or_added_byte_is_noticed() {
        let mut bytes = model().to_bytes(SET);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut to {length} bytes was not noticed");
        }
        bytes.push(0);
        assert!(matches!(read(&bytes), Err(ModelError::Length { .. })));
    }

    /// A file with a right checksum and one changed word.
    fn with_word(at: usize, value: u32) -> Vec<u8> {
        let mut bytes = model().to_bytes(SET);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let end = bytes.len() - 4;
        let checksum = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&checksum);
        bytes
    }

    #[test]
    fn a_file_for_something_else_says_what() {
        assert!(matches!(read(b"ELF and more"), Err(ModelError::Foreign)));
        assert!(matches!(read(&with_word(8, 2)), Err(ModelError::Version { found: 2 })));
        let what = |bytes: &[u8]| match read(bytes) {
            Err(ModelError::Other { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(what(&with_word(12, 4)), "numbers of features");
        assert_eq!(what(&with_word(20, 11)), "bins");
        assert_eq!(what(&with_word(24, 0)), "features");
        assert_eq!(what(&with_word(16, 5)), "sizes");
        assert_eq!(what(&with_word(16, u32::MAX)), "sizes");
        assert!(matches!(
            read(&with_word(HEADER_BYTES + 8, f32::NAN.to_bits())),
            Err(ModelError::NotFinite { index: 2 })
        ));
    }

    #[test]
    fn features_of_other_names_or_in_other_order_have_another_fingerprint() {
        assert_ne!(fingerprint(&["a", "b"]), fingerprint(&["b", "a"]));
        assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
    }

    #[test]
    fn features_far_outside_are_kept_within_bounds() {
        let mut model = Model::zeros(Shape { features: 2, hidden: 1 }, 1000);
        (model.mean, model.scale) = (vec![1.0, 0.0], vec![2.0, 1.0]);
        let mut out = vec![];
        model.normalise(&[1.5, 1e9], &mut out);
        assert_eq!(out, [1.0, NORMAL_MAX]);
    }
}
