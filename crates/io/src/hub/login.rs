//! The token of a user.

use super::{api::Api, settings::Hub};
use crate::FileError;
use std::{fs, path::PathBuf};

/// A user whom the hub knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name of the account.
    pub name: String,
    /// File of the token.
    pub file: PathBuf,
}

impl Hub {
    /// Checks a token at the hub, and writes it where Python's `huggingface_hub` reads it, too, readable
    /// by its owner only.
    ///
    /// # Errors
    /// [`FileError::Hub`] if the hub does not know the token or cannot be reached;
    /// [`FileError::Io`] if the file cannot be written.
    pub fn login(&self, token: &str) -> Result<User, FileError> {
        let failed = |reason: String| FileError::Hub { model: "login".into(), reason };
        let token = token.trim();
        if token.is_empty() || token.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let at = format!("{}/settings/tokens", self.endpoint);
            return Err(failed(format!("a token is one word that begins with hf_: see {at}")));
        }
        let Some(file) = self.token_file.clone() else {
            return Err(failed("there is no home directory to write it to: set HF_HOME".into()));
        };
        let hub = self.clone().token(Some(token.to_owned()));
        let user = Api::new(&hub).get("api/whoami-v2").map_err(|error| match error.status {
            Some(401) => failed(format!(
                "{} does not know this token: copy it again from {0}/settings/tokens",
                self.endpoint
            )),
            _ => failed(error.reason),
        })?;
        let name = user["name"].as_str().unwrap_or("?").to_owned();
        let io = |source| FileError::Io { path: file.clone(), source };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        // Restricted before the token is in it.
        if !file.exists() {
            crate::replace(&file, b"").map_err(io)?;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(io)?;
        }
        crate::replace(&file, token.as_bytes()).map_err(io)?;
        Ok(User { name, file })
    }
}
