//! Where libtorch is and which one, told without opening it.

use std::fs;
use std::path::{Path, PathBuf};

use qf_cli::version;

/// The folder that this program's libtorch was in when it was built, if the build script knows it.
const BUILT_WITH: Option<&str> = option_env!("QF_TORCH_LIB");

/// Whether the program carries its part for NCCL.
const CARRIES_NCCL: bool = option_env!("QF_NCCL").is_some();

/// The `lib` folder of a libtorch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libtorch(PathBuf);

impl Libtorch {
    /// The one that the dynamic linker will take; `None` where only the linker knows.
    ///
    /// # Errors
    /// A libtorch that is gone: what to do, in words.
    #[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
    pub fn find() -> Result<Option<Libtorch>, String> {
        let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let Some(built_with) = BUILT_WITH else {
            return Ok(None);
        };
        Libtorch::find_in(Path::new(built_with), std::env::split_paths(&paths)).map(Some)
    }

    fn find_in(
        built_with: &Path,
        paths: impl Iterator<Item = PathBuf>,
    ) -> Result<Libtorch, String> {
        let mut folders = paths.chain([built_with.to_owned()]);
        let found = folders.find(|folder| folder.join("libtorch_cpu.so").exists());
        found.map(Libtorch).ok_or_else(|| {
            format!(
                "libtorch is gone from {}, where it was when qftrain was built; run `make install` in the \
                 checkout to fetch it again, or name the lib folder of a libtorch of the same version in \
                 LD_LIBRARY_PATH",
                built_with.display()
            )
        })
    }

    /// Its library for the CPU.
    fn library(&self) -> PathBuf {
        self.0.join("libtorch_cpu.so")
    }

    /// Its version, from a file of its archive or of the Python package.
    fn version(&self) -> Option<String> {
        let root = self.0.parent()?;
        match fs::read_to_string(root.join("build-version")) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(_) => self.of_package("__version__"),
        }
    }

    /// The version of CUDA that its CUDA part was built with, e.g. `13.0`; `None` where it has no such part.
    fn cuda(&self) -> Option<String> {
        if !self.0.join("libtorch_cuda.so").exists() {
            return None;
        }
        if let Some(version) = self.of_package("cuda") {
            return Some(version);
        }
        let version = self.version()?;
        let (_, cuda) = version.split_once("+cu")?;
        let (major, minor) = cuda.split_at_checked(cuda.len().checked_sub(1)?)?;
        Some(format!("{major}.{minor}"))
    }

    /// A value of the package's version.py: `NAME = 'VALUE'`, perhaps with a type behind the name.
    fn of_package(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.0.parent()?.join("version.py")).ok()?;
        let mut lines = text.lines();
        let value = lines.find_map(|line| {
            let (left, value) = line.split_once(" = ")?;
            (left.split(':').next() == Some(name)).then_some(value)
        })?;
        let value = value.trim().strip_prefix(['\'', '"'])?;
        Some(value.trim_end_matches(['\'', '"']).to_owned())
    }
}

/// What `--version` adds.
pub fn version_details() -> String {
    const UNKNOWN: &str = "unknown version";
    let (libtorch, cuda) = match Libtorch::find() {
        Ok(Some(found)) => {
            let version = found.version().unwrap_or_else(|| UNKNOWN.into());
            let library = found.library();
            let library = library.canonicalize().unwrap_or(library);
            let cuda = match found.cuda() {
                Some(version) => version,
                None => "none: this libtorch has no CUDA part".into(),
            };
            (format!("{version}, {}", library.display()), cuda)
        }
        Ok(None) => (UNKNOWN.into(), UNKNOWN.into()),
        Err(problem) => (format!("none: {problem}"), "none".into()),
    };
    let several = match CARRIES_NCCL {
        true => "NCCL, Gloo",
        false => "Gloo (NCCL: make setup QF_NCCL=1, then build)",
    };
    version::details(&[
        ("libtorch", libtorch),
        ("CUDA", cuda),
        ("groups", several.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtorch_that_is_gone_is_said_unless_another_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (gone, other) = (folder.path().join("gone"), folder.path().join("other"));
        fs::create_dir(&other).unwrap();
        let find =
            |paths: &[&PathBuf]| Libtorch::find_in(&gone, paths.iter().map(|p| (*p).clone()));
        let text = find(&[&other]).unwrap_err();
        for part in ["gone", "make install", "LD_LIBRARY_PATH"] {
            assert!(text.contains(part), "{text}");
        }
        fs::write(other.join("libtorch_cpu.so"), "").unwrap();
        assert_eq!(find(&[&other]), Ok(Libtorch(other)));
        assert!(find(&[]).is_err());
        // What this build was linked with is there, and says its version.
        let own = Libtorch::find().unwrap().unwrap();
        assert!(own.version().unwrap().starts_with("2."));
    }

    #[test]
    fn versions_are_those_of_the_package_or_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib");
        fs::create_dir(&lib).unwrap();
        let libtorch = Libtorch(lib.clone());
        assert_eq!((libtorch.version(), libtorch.cuda()), (None, None));
        let package = "__all__ = ['__version__', 'cuda']\n__version__ = '2.11.0+cu130'\n\
                       cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n";
        fs::write(folder.path().join("version.py"), package).unwrap();
        let version = Some("2.11.0+cu130".to_owned());
        assert_eq!((libtorch.version(), libtorch.cuda()), (version, None));
        fs::write(lib.join("libtorch_cuda.so"), "").unwrap();
        assert_eq!(libtorch.cuda().unwrap(), "13.0");
        assert_eq!(libtorch.of_package("hip"), None);
        fs::remove_file(folder.path().join("version.py")).unwrap();
        fs::write(folder.path().join("build-version"), "2.9.1+cu128\n").unwrap();
        assert_eq!(libtorch.version().unwrap(), "2.9.1+cu128");
        assert_eq!(libtorch.cuda().unwrap(), "12.8");
    }
}
