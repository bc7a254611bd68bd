//! Output folder of a run, which belongs to it alone while it lasts.

use crate::{TrainError, checkpoint};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

/// Lock file of the run. The system releases the lock when the process ends, however it ends.
const LOCK: &str = "run.lock";

/// An output folder that no other run writes into.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    /// `None` if the file system has no locks.
    lock: Option<File>,
    /// The folder was created by this run.
    made: bool,
}

impl Output {
    /// Claims a folder, and removes what a killed run left unfinished in it. A folder that another
    /// run has claimed, or that has checkpoints and is not to be resumed, is left unchanged.
    pub fn claim(path: &Path, resume: bool) -> Result<Self, TrainError> {
        if path.as_os_str().is_empty() {
            return Err(TrainError::setting("output", "empty", "it has to name a folder"));
        }
        let made = !path.exists();
        let lock = take(path)?;
        let output = Self { path: path.to_owned(), lock, made };
        output.check(resume)?;
        checkpoint::tidy(path);
        Ok(output)
    }

    /// Checks that a new run, or a resumed one, may write here.
    pub fn check(&self, resume: bool) -> Result<(), TrainError> {
        let newest = checkpoint::list(&self.path)?.pop_last();
        match newest {
            Some((_, folder)) if !resume => {
                let reason = format!(
                    "it has checkpoints of an earlier run ({}): resume that one, remove them, or \
                     write into another folder",
                    folder.display()
                );
                Err(TrainError::setting("output", self.path.display(), reason))
            }
            _ => Ok(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder again if it was removed meanwhile.
    pub fn renew(&mut self) -> Result<(), TrainError> {
        let ours = match &self.lock {
            Some(lock) => is_at(lock, &self.path.join(LOCK)),
            None => self.path.is_dir(),
        };
        if !ours {
            burn_lora_io::warn!(
                "{} was removed during the run: it is made anew, without the checkpoints and \
                 metrics of the steps so far",
                self.path.display()
            );
            self.lock = take(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Other systems than Unix do not remove an open file; it may stay.
        let lock = self.path.join(LOCK);
        if cfg!(unix) && self.lock.as_ref().is_some_and(|file| is_at(file, &lock)) {
            fs::remove_file(lock).ok();
        }
        if self.made {
            // Only if it is empty.
            fs::remove_dir(&self.path).ok();
        }
    }
}

/// Creates a folder and locks it.
fn take(folder: &Path) -> Result<Option<File>, TrainError> {
    let io = |error| TrainError::io(folder, error);
    fs::create_dir_all(folder).map_err(io)?;
    let path = folder.join(LOCK);
    loop {
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(TrainError::format(&path, "it is no file: remove it"));
        }
        // This also checks that the folder can be written.
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(io)?;
        match file.try_lock() {
            // Its last holder may have removed it between opening and locking.
            Ok(()) if !is_at(&file, &path) => {}
            Ok(()) => {
                let process = std::process::id().to_string();
                file.set_len(0).and_then(|()| file.write_all(process.as_bytes())).ok();
                return Ok(Some(file));
            }
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                file.rewind().and_then(|()| file.take(20).read_to_string(&mut process)).ok();
                let process = match process.parse::<u32>() {
                    Ok(number) => format!(" (process {number})"),
                    Err(_) => String::new(),
                };
                let reason = format!(
                    "another run{process} writes into it: wait for its end, or write into another \
                     folder"
                );
                return Err(TrainError::setting("output", folder.display(), reason));
            }
            Err(TryLockError::Error(error)) => {
                burn_lora_io::warn!(
                    "{} cannot be locked ({error}): see to it that no other run writes into it",
                    folder.display()
                );
                return Ok(None);
            }
        }
    }
}

/// Returns `true` if an open file is the file at this path.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(found)) = (file.metadata(), fs::metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (file.dev(), file.ino()) == (found.dev(), found.ino())
    }
    #[cfg(not(unix))]
    {
        file.is_file() && found.is_file()
    }
}
