//! Files of spilled records: nobody else can read them, no symbolic link is followed, and whatever is half done shows it.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, statat, unlinkat},
    io::Errno,
};

/// A directory, held open: a name in it is what it was, whatever becomes of the path.
#[derive(Debug)]
pub(crate) struct Folder {
    file: File,
    path: PathBuf,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// It must not be there yet.
    New,
    /// To be read.
    Read,
    /// To be read and added to; made if it is missing.
    Append,
}

impl Folder {
    /// This directory, made if it is missing: for nobody but us, whatever the umask says.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let parent = parent(path);
        if !parent.is_dir() {
            Self::make(&parent)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            // Another process was faster.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => return Self::open(path),
            Ok(()) => {}
        }
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        // It is there for good when the one that it is in says so.
        File::open(parent)?.sync_all()?;
        Self::open(path)
    }

    /// This directory, which must be one, and not a link to one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is no directory, or a symbolic link to one: give the directory itself",
            ),
            error => error.into(),
        })?;
        Ok(Self { file: file.into(), path: path.to_owned() })
    }

    /// The directory that a file is in, and the file's name.
    pub(crate) fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        // Through a link if need be: whoever names the file means the one that is there.
        Ok((Self::open(&fs::canonicalize(parent(path))?)?, name))
    }

    /// The path of a file in it, for people.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn open_file(&self, name: &OsStr, how: Open) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | match how {
                Open::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
                // Not blocking, for something that is no file.
                Open::Read => OFlags::RDONLY | OFlags::NONBLOCK,
                Open::Append => OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
            };
        let file = File::from(openat(&self.file, name, flags, Mode::RUSR | Mode::WUSR)?);
        if how == Open::New {
            // Whatever the umask took away.
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(file)
    }

    pub(crate) fn has(&self, name: &OsStr) -> bool {
        statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether this name still is this file, and not gone or another one.
    pub(crate) fn is(&self, name: &OsStr, file: &File) -> io::Result<bool> {
        let there = match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            there => there?,
        };
        let open = rustix::fs::fstat(file)?;
        Ok((there.st_dev, there.st_ino) == (open.st_dev, open.st_ino))
    }
}

/// The directory that a path is in; that of a bare name is the current one.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Whether nobody else holds this file, who will let go of it when its process ends. An error where the file system has no
/// locks.
pub(crate) fn claim(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What changes files. Tests have one that is slow, full, or gone in the middle.
pub(crate) trait Disk: Send + Sync + 'static {
    fn open(&self, folder: &Folder, name: &OsStr, how: Open) -> io::Result<File> {
        folder.open_file(name, how)
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    /// Returns when what was written to this file is there for good.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Returns when what this directory lists is there for good.
    fn sync_folder(&self, folder: &Folder) -> io::Result<()> {
        folder.file.sync_all()
    }

    fn rename(&self, folder: &Folder, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&folder.file, from, &folder.file, to)?)
    }

    /// Removes a file; it need not be there.
    fn remove(&self, folder: &Folder, name: &OsStr) -> io::Result<()> {
        match unlinkat(&folder.file, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {}

/// Writes to a file through a disk.
pub(crate) struct Through<'a, D: Disk + ?Sized>(pub(crate) &'a D, pub(crate) &'a File);

impl<D: Disk + ?Sized> io::Write for Through<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(self.1, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
