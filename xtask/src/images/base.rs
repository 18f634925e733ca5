//! A minimal Debian with a server's packages as an image: what the Debian-built images stand on where no registry has one.
//!
//! Each in one go, from packages to the engine: installing them while an engine builds an image takes several times as
//! long, as that looks at every file of every layer.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

use super::{
    docker, label,
    pins::{Image, Pins},
};
use crate::{debian, run};

/// The program that makes them.
const PROGRAM: &str = "mmdebstrap";

/// What nobody reads in a server under test.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"];

/// Makes the base of an image, unless it is there.
pub(crate) fn make(pins: &Pins, image: &Image, mirror: &str, folder: &Path, rebuild: bool) -> Result<()> {
    let digest = pins.base_digest(image);
    if !rebuild && label::of(&image.base_tag())?.as_deref() == Some(&digest) {
        return Ok(());
    }
    let log = folder.join(format!("base-{}-{}.log", image.name, image.version));
    let mut packages = Command::new(PROGRAM);
    packages.args(arguments(pins, image, mirror)).env("PATH", with_system_folders());
    let change = format!("LABEL {}={digest}", label::NAME);
    // the archive goes from one to the other, without a file in between
    let id = run::logged_into(&mut packages, &log, |archive| {
        run::output(docker(["import", "--change", &change, "-"]).stdin(archive))
    })?;
    // Only now: an archive that was cut short can be imported too.
    run::status(&mut docker(["tag", id.trim(), &image.base_tag()]))
}

/// The machine's own mirror, with the program that needs it installed.
pub(crate) fn debian_mirror() -> Result<String> {
    if !debian::can_install() {
        bail!("no registry answers, and images from Debian's packages can only be made on Debian, as root");
    }
    if !run::works(Command::new(PROGRAM).arg("--version")) {
        debian::install(&[PROGRAM])?;
    }
    debian::mirror()
}

/// One archive on standard output, of everything that the packages need and no more.
fn arguments(pins: &Pins, image: &Image, mirror: &str) -> Vec<String> {
    let mut arguments = vec![
        // in a place of its own where it mounts, so that nothing is left mounted however it ends
        "--mode=root".to_owned(),
        "--variant=minbase".to_owned(),
        "--format=tar".to_owned(),
        format!("--include={}", image.packages.join(",")),
        "--aptopt=Acquire::Languages \"none\"".to_owned(),
        // what is not finished is thrown away anyhow
        "--dpkgopt=force-unsafe-io".to_owned(),
        "--dpkgopt=force-confold".to_owned(),
    ];
    arguments.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    arguments.push("--dpkgopt=path-include=/usr/share/doc/*/copyright".to_owned());
    if !pins.suite(image).check_valid_until {
        arguments.push("--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned());
    }
    for (path, text) in &image.files {
        let (path, text) = (quoted(&format!("/{path}")), quoted(text));
        arguments
            .push(format!("--essential-hook=mkdir -p \"$(dirname \"$1\"{path})\" && printf %s {text} >\"$1\"{path}"));
    }
    arguments.extend([image.suite.clone(), "-".to_owned(), mirror.to_owned()]);
    arguments
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `PATH` with the folders of an administrator's programs, which not every root has.
fn with_system_folders() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_word_of_a_shell_whatever_is_in_it() {
        for text in ["", "plain", "two words", "it's", "$HOME `id` \"x\" \\\n"] {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("printf %s {}", quoted(text))]);
            assert_eq!(run::output(&mut shell).unwrap(), text);
        }
    }

    #[test]
    fn a_suite_with_stale_dates_and_a_file_before_the_packages_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("server")).unwrap();
        std::fs::write(folder.path().join("server/Containerfile"), "FROM scratch").unwrap();
        let text = "[suites.sid]\ncheck_valid_until = false\n[[image]]\nname = \"server\"\nversion = \"1\"\n\
                    recipe = \"server\"\nsuite = \"sid\"\npackages = [\"a=1.*\", \"b\"]\n\
                    files = { \"etc/a.conf\" = \"x = 1\\n\" }\n";
        std::fs::write(folder.path().join("images.toml"), text).unwrap();
        let pins = Pins::read(folder.path()).unwrap();
        let arguments = arguments(&pins, &pins.images[0], "http://mirror.invalid/");
        assert!(arguments.contains(&"--include=a=1.*,b".to_owned()), "{arguments:?}");
        assert!(arguments.iter().any(|argument| argument.contains("Check-Valid-Until")), "{arguments:?}");
        assert!(arguments.iter().any(|argument| argument.contains("'/etc/a.conf'")), "{arguments:?}");
        assert_eq!(arguments[arguments.len() - 3..], ["sid", "-", "http://mirror.invalid/"]);
    }
}
