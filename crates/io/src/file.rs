//! Reading of regular files, and atomic writing.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Error, ErrorKind, Read, Write},
    path::Path,
};

/// Opens a file for reading.
///
/// # Errors
/// [`ErrorKind::IsADirectory`] for a folder; [`ErrorKind::InvalidInput`] for anything else that is
/// no regular file: reading a pipe would block, reading a device might never end. Otherwise those
/// of [`File::open`].
pub fn open(path: &Path) -> io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(Error::new(
            ErrorKind::IsADirectory,
            "it is a folder, where a file is expected",
        ));
    }
    if !kind.is_file() {
        let reason = "it is a pipe or a device: copy what it gives into a file";
        return Err(Error::new(ErrorKind::InvalidInput, reason));
    }
    File::open(path)
}

/// Reads a whole file.
///
/// # Errors
/// As [`open`], and those of reading.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file of UTF-8.
///
/// # Errors
/// As [`read`]; [`ErrorKind::InvalidData`] for bytes that are not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(ErrorKind::InvalidData, format!("it is not UTF-8 at byte {at}"))
    })
}

/// Writes a whole file atomically: into a temporary file in the same folder, which is synced and
/// renamed, so that a reader finds either the old or the new file, also after a power failure.
///
/// # Errors
/// Those of writing. The old file is kept then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(bytes))
}

/// Writes a file atomically, as [`replace`] does, piece by piece.
///
/// # Errors
/// Those of `write`, and those of the file.
pub fn replace_with<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    replace_checked(path, write, |_| Ok(()))
}

/// Writes a file as [`replace_with`] does, and calls `check` with its temporary path before it takes the
/// place of an older one.
pub(crate) fn replace_checked<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // The permissions of any new file: the umask applies.
    #[cfg(unix)]
    let builder = {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666))
    };
    let file = builder.prefix(".writing-").tempfile_in(folder)?;
    if let Ok(old) = fs::metadata(path) {
        file.as_file().set_permissions(old.permissions())?;
    }
    let mut out = BufWriter::new(file.as_file());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    check(file.path())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // Syncs the name, too. Not every system can open a folder.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all().ok();
    }
    Ok(())
}
