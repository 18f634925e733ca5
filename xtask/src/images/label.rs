//! The label that says what an image was made of.

use anyhow::Result;

use super::docker;

/// Its value is the digest of the image's pins.
pub(crate) const NAME: &str = "winddown.recipe";

/// The label of an image that is here; `None` where there is no image, or one without it.
pub(crate) fn of(tag: &str) -> Result<Option<String>> {
    let format = format!("{{{{index .Config.Labels {NAME:?}}}}}");
    // one that is not there is an error like any other, and an engine that does not answer has been found out before
    let output = docker(["image", "inspect", "--format", &format, tag]).output()?;
    let label = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && !label.is_empty()).then_some(label))
}
