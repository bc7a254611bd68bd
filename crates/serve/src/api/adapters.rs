//! `/v1/models`, and adapters that requests load and unload.

use super::{ApiError, App, Fields};
use crate::models::Served;
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc};

fn document(app: &App, served: &Served) -> Value {
    let base = app.models.base();
    json!({
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "burn-lora",
        "parent": served.adapter.as_ref().map(|_| &base.name),
        "root": served.folder,
        "max_model_len": app.config.max_length,
    })
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let all: Vec<_> = app.models.all().iter().map(|served| document(&app, served)).collect();
    Json(json!({ "object": "list", "data": all }))
}

pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(document(&app, &*app.served(&name)?)))
}

pub(super) async fn load(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<String, ApiError> {
    app.check_going()?;
    let name: String = fields.need("lora_name")?;
    let path: PathBuf = fields.need("lora_path")?;
    fields.finish()?;
    let folder = app.allowed(&path)?;
    // To its end, also if the client does not wait for it.
    let loading = tokio::spawn(async move {
        // One at a time, so that no name is given twice.
        let _alone = app.loading.lock().await;
        if app.models.get(&name).is_some() {
            let message = format!("`{name}` is there already");
            return Err(ApiError::invalid(Some("lora_name"), message).status(StatusCode::CONFLICT));
        }
        app.load(&name, folder).await?;
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    });
    loading.await.map_err(|error| ApiError::failed(error.to_string()))?
}

pub(super) async fn unload(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<String, ApiError> {
    let name: String = fields.need("lora_name")?;
    fields.finish()?;
    app.check_may_load()?;
    let _alone = app.loading.lock().await;
    let served = app.served(&name)?;
    let Some(adapter) = &served.adapter else {
        return Err(ApiError::invalid(Some("lora_name"), format!("`{name}` is the base")));
    };
    app.models.remove(&name);
    app.unload(adapter)?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}
