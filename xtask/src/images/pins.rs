//! `images/images.toml`, and what an image's content depends on.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Whose images they are.
const REPOSITORY: &str = "winddown-test";

/// Changed when the code that makes images makes others from the same recipe.
const EDITION: &str = "2";

/// All images and what they stand on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pins {
    suites: BTreeMap<String, Suite>,
    #[serde(rename = "image")]
    pub(crate) images: Vec<Image>,
    /// Where the recipes are.
    #[serde(skip)]
    folder: PathBuf,
}

/// A Debian that packages are taken from.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suite {
    /// Whether the suite's index has a date that means something.
    pub(crate) check_valid_until: bool,
}

/// One server.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) official: Option<String>,
    recipe: String,
    pub(crate) suite: String,
    pub(crate) packages: Vec<String>,
    /// What is in the image before the packages are: paths without a slash in front, and what is in them.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, String>,
}

impl Pins {
    /// Reads the pins and checks that each image has its suite and its recipe.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("images.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut pins: Self = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        pins.folder = folder.to_owned();
        for image in &pins.images {
            if !pins.suites.contains_key(&image.suite) {
                bail!("{} is of the suite {:?}, which is not in {}", image.tag(), image.suite, path.display());
            }
            if !pins.recipe(image).join("Containerfile").is_file() {
                bail!("{} has no Containerfile in {}", image.tag(), pins.recipe(image).display());
            }
        }
        Ok(pins)
    }

    /// The suite that an image's packages are taken from.
    pub(crate) fn suite(&self, image: &Image) -> &Suite {
        &self.suites[&image.suite]
    }

    /// The folder with an image's recipe.
    pub(crate) fn recipe(&self, image: &Image) -> PathBuf {
        self.folder.join(&image.recipe)
    }

    /// Stands for everything that an image's packages and files are: what its recipe builds on.
    pub(crate) fn base_digest(&self, image: &Image) -> String {
        let Suite { check_valid_until } = self.suite(image);
        let mut hash = Fields::new();
        hash.field(&image.suite).field([u8::from(*check_valid_until)]).field(image.packages.join(" "));
        for (path, text) in &image.files {
            hash.field(path).field(text);
        }
        hash.digest()
    }

    /// Stands for everything an image is made of: its pins and its recipe.
    pub(crate) fn digest(&self, image: &Image) -> Result<String> {
        let Image { name, version, official, recipe: _, suite: _, packages: _, files: _ } = image;
        let mut hash = Fields::new();
        hash.field(self.base_digest(image));
        hash.field(name).field(version).field(official.as_deref().unwrap_or_default());

        let recipe = self.recipe(image);
        let unreadable = || format!("cannot read {}", recipe.display());
        let files: Vec<_> = fs::read_dir(&recipe).and_then(Iterator::collect).with_context(unreadable)?;
        // in an order of their own: a folder has none
        let files: BTreeMap<_, _> = files.iter().map(|file| (file.file_name(), file.path())).collect();
        for (name, path) in files {
            hash.field(name.as_encoded_bytes()).field(fs::read(path).with_context(unreadable)?);
        }
        Ok(hash.digest())
    }
}

impl Image {
    /// What it is called here, whichever way it came.
    pub(crate) fn tag(&self) -> String {
        format!("{REPOSITORY}/{}:{}", self.name, self.version)
    }

    /// What Debian with its packages is called, which its recipe builds on.
    pub(crate) fn base_tag(&self) -> String {
        format!("{REPOSITORY}/base:{}-{}", self.name, self.version)
    }
}

/// A hash of several texts, where the place at which one ends and the next begins counts too.
struct Fields(Sha256);

impl Fields {
    fn new() -> Self {
        let mut fields = Self(Sha256::new());
        // another processor, other programs
        fields.field(EDITION).field(env::consts::ARCH);
        fields
    }

    fn field(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text);
        self
    }

    fn digest(&mut self) -> String {
        self.0.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [suites.stable]
        check_valid_until = true

        [[image]]
        name = "server"
        version = "1"
        recipe = "server"
        suite = "stable"
        packages = ["server=1.*"]
    "#;

    /// Pins in a folder with the recipe they need.
    fn folder(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("images.toml"), text).unwrap();
        fs::create_dir(folder.path().join("server")).unwrap();
        fs::write(folder.path().join("server/Containerfile"), "FROM scratch").unwrap();
        fs::write(folder.path().join("server/entrypoint.sh"), "exec server").unwrap();
        folder
    }

    fn digest(folder: &tempfile::TempDir) -> String {
        let pins = Pins::read(folder.path()).unwrap();
        pins.digest(&pins.images[0]).unwrap()
    }

    #[test]
    fn the_project_s_own_pins_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
        let pins = Pins::read(&folder).unwrap();
        let tags: Vec<_> = pins.images.iter().map(Image::tag).collect();
        assert!(tags.contains(&"winddown-test/postgres:17".to_owned()), "{tags:?}");
    }

    #[test]
    fn a_digest_stays_until_something_it_stands_for_changes() {
        let before = folder(TEXT);
        assert_eq!(digest(&before), digest(&folder(TEXT)));
        for changed in [
            TEXT.replace("server=1.*", "server=1.2.*"),
            TEXT.replace("version = \"1\"", "version = \"2\""),
            TEXT.replace("stable", "testing"),
            TEXT.replace("true", "false"),
            TEXT.replace("recipe =", "files = { \"etc/server\" = \"x\" }\nrecipe ="),
            TEXT.replace("recipe =", "official = \"server:1\"\nrecipe ="),
        ] {
            assert_ne!(digest(&before), digest(&folder(&changed)), "{changed}");
        }
        let recipe = folder(TEXT);
        fs::write(recipe.path().join("server/entrypoint.sh"), "exec server --fast").unwrap();
        assert_ne!(digest(&before), digest(&recipe));
    }

    #[test]
    fn what_an_image_lacks_is_named() {
        let error = |text: &str| Pins::read(folder(text).path()).unwrap_err().to_string();
        let suite = error(&TEXT.replace("suite = \"stable\"", "suite = \"other\""));
        assert!(suite.contains("winddown-test/server:1 is of the suite \"other\""), "{suite}");
        let recipe = error(&TEXT.replace("recipe = \"server\"", "recipe = \"other\""));
        assert!(recipe.contains("winddown-test/server:1 has no Containerfile"), "{recipe}");
    }
}
