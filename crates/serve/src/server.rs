//! The server: a thread that runs the model, and requests that come to it.

use crate::{
    answers::Queue,
    api::{ApiError, App, router},
    config::ServeConfig,
    error::ServeError,
    metrics::Metrics,
    models::{Models, Served},
    worker::{Broken, Command, Worker},
};
use burn_lora_adapter::AdaptableExt;
use burn_lora_kernels::compute_here;
use burn_lora_llama::{Generate, GenerateConfig};
use burn_lora_text::Tokenizer;
use std::{
    future::IntoFuture,
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Mutex, oneshot},
    time::sleep,
};

/// A model, with its adapters, that answers requests.
pub struct Server {
    app: App,
    worker: JoinHandle<Result<(), Broken>>,
    runtime: Runtime,
}

impl Server {
    /// Creates a server that answers as `name` with the base, and with each of its adapters under that one's name.
    ///
    /// # Errors
    /// [`ServeError::Setting`] if a setting cannot be used; [`ServeError::Folder`] if there is no such folder of adapters.
    pub fn new<M: Generate + Send>(
        name: &str,
        model: M,
        tokenizer: Tokenizer,
        mut config: ServeConfig,
    ) -> Result<Self, ServeError> {
        let setting = |field, found: &dyn std::fmt::Display, reason: &str| ServeError::Setting {
            field,
            found: found.to_string(),
            reason: reason.into(),
        };
        if config.batch == 0 {
            return Err(setting("batch", &0, "expected at least 1"));
        }
        if config.max_length < 2 {
            return Err(setting("max_length", &config.max_length, "expected at least 2"));
        }
        let lookup = GenerateConfig::new(1).prompt_lookup(config.prompt_lookup).validate();
        if let Err(error) = lookup {
            return Err(setting("prompt_lookup", &config.prompt_lookup, &error.to_string()));
        }
        if config.key.as_ref().is_some_and(String::is_empty) {
            return Err(setting("key", &"empty", "leave it out, or set one"));
        }
        for folder in &mut config.adapter_folders {
            let found = folder.canonicalize();
            *folder =
                found.map_err(|source| ServeError::Folder { path: folder.clone(), source })?;
        }
        let tokenizer = Arc::new(tokenizer);
        let models = Models::new(Served::new(name, None, tokenizer.clone(), None));
        for adapter in model.adapter_names() {
            check_free(&models, &adapter)?;
            models.add(Served::new(&adapter, Some(&adapter), tokenizer.clone(), None));
        }
        let (commands, taken) = mpsc::channel();
        let metrics = Arc::new(Metrics::new());
        let (batch, lookup, counted) = (config.batch, config.prompt_lookup, metrics.clone());
        let worker = thread::Builder::new().name("burn-lora-serve".into());
        let worker = worker.spawn(move || {
            compute_here();
            Worker::new(model, batch, lookup, counted).run(&taken)
        })?;
        let queue = Queue::new(commands, config.batch + config.queue, config.timeout, metrics);
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (loading, loads, ending) =
            (Mutex::new(()), AtomicUsize::new(0), AtomicBool::new(false));
        let app = App { config, models, queue, loading, loads, ending, checks_host: false };
        Ok(Self { app, worker, runtime })
    }

    /// Loads an adapter in PEFT's format, which answers under a name of its own.
    ///
    /// # Errors
    /// [`ServeError::Adapter`] if it cannot be loaded, or the name is taken.
    pub fn load_adapter(&mut self, name: &str, folder: impl AsRef<Path>) -> Result<(), ServeError> {
        check_free(&self.app.models, name)?;
        let load = self.app.load(name, folder.as_ref().to_owned());
        self.runtime.block_on(load).map_err(|error| failed(name, &error))
    }

    /// Answers requests until `stopped` says so, which is asked several times a second. Then no further ones are taken, and
    /// those on their way may go on for [`ServeConfig::grace`].
    ///
    /// # Errors
    /// [`ServeError::System`] if the socket fails, [`ServeError::Worker`] if the model does.
    pub fn run(self, listener: TcpListener, stopped: impl Fn() -> bool) -> Result<(), ServeError> {
        let Self { mut app, worker, runtime } = self;
        app.checks_host = app.config.key.is_none() && listener.local_addr()?.ip().is_loopback();
        let app = Arc::new(app);
        runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let (end, ended) = oneshot::channel();
            let graceful = async { _ = ended.await };
            let serve = axum::serve(listener, router(app.clone())).with_graceful_shutdown(graceful);
            let serve = tokio::spawn(serve.into_future());
            while !stopped() && !worker.is_finished() && !serve.is_finished() {
                sleep(Duration::from_millis(100)).await;
            }
            app.ending.store(true, Ordering::Relaxed);
            _ = end.send(());
            let abort = serve.abort_handle();
            tokio::select! {
                served = serve => served.unwrap_or(Ok(())),
                () = sleep(app.config.grace) => {
                    // A moment for the last words; who does not read them is left.
                    _ = app.queue.commands.send(Command::End);
                    sleep(Duration::from_secs(1)).await;
                    abort.abort();
                    Ok(())
                }
            }
        })?;
        _ = app.queue.commands.send(Command::End);
        runtime.shutdown_timeout(Duration::from_secs(1));
        match worker.join() {
            Ok(Ok(())) => Ok(()),
            _ => Err(ServeError::Worker),
        }
    }
}

fn check_free(models: &Models, name: &str) -> Result<(), ServeError> {
    match models.get(name) {
        None => Ok(()),
        Some(_) => Err(ServeError::Adapter {
            name: name.into(),
            reason: "the name is that of another, or of the base".into(),
        }),
    }
}

fn failed(name: &str, error: &ApiError) -> ServeError {
    ServeError::Adapter { name: name.into(), reason: error.message().to_owned() }
}
