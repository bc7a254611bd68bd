//! Warnings, files and text as a program of a user's meets them.

use burn_lora_io::{
    collect, escaped, open, read_to_string, replace, replace_with, tensor_headers, warn,
};
use std::{
    env, fs,
    io::{Error, ErrorKind, Write},
    process::Command,
};

/// Runs one of the tests below in a process of its own, and gives its standard error.
fn child(name: &str) -> Vec<String> {
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command
        .args(["--exact", &format!("io::{name}"), "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "run by `without_a_subscriber_each_text_is_printed_once`"]
fn warns_without_a_subscriber() {
    for rank in [512, 512, 300] {
        warn!("the rank is {rank}\u{7}");
    }
}

#[test]
fn without_a_subscriber_each_text_is_printed_once() {
    let expected = ["warning: the rank is 512\\u{7}", "warning: the rank is 300\\u{7}"];
    assert_eq!(child("warns_without_a_subscriber"), expected);
}

/// Prints what it is told.
struct Listener;

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message;
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                eprintln!("heard: {value:?}");
            }
        }
        assert_eq!(*event.metadata().level(), tracing::Level::WARN);
        event.record(&mut Message);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
#[ignore = "run by `a_subscriber_hears_all_of_them`"]
fn warns_with_a_subscriber() {
    tracing::subscriber::set_global_default(Listener).unwrap();
    warn!("late");
    warn!("late");
}

#[test]
fn a_subscriber_hears_all_of_them() {
    assert_eq!(child("warns_with_a_subscriber"), ["heard: late", "heard: late"]);
}

#[test]
fn collections_nest_and_survive_a_panic() {
    let ((_, inner), outer) = collect(|| {
        warn!("one");
        _ = std::panic::catch_unwind(|| collect(|| panic!("inside")));
        collect(|| warn!("two"))
    });
    assert_eq!((inner, outer), (vec!["two".to_owned()], vec!["one".to_owned()]));
}

#[test]
fn control_characters_are_escaped() {
    let text = "a\u{8}\u{1b}[2J\u{9b}\u{202e}\u{2028}\u{85}\r\n\té";
    let shown = r"a\u{8}\u{1b}[2J\u{9b}\u{202e}\u{2028}\u{85}\r\n\té";
    assert_eq!(escaped(text).to_string(), shown);
}

#[test]
fn a_file_is_replaced_whole_or_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it");
    replace(&path, b"old").unwrap();
    let failed = replace_with(&path, |file| {
        file.write_all(b"half")?;
        Err(Error::other("no more"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "no more");
    assert_eq!(read_to_string(&path).unwrap(), "old");
    replace(&path, b"new").unwrap();
    assert_eq!(read_to_string(&path).unwrap(), "new");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn modes_are_those_of_any_file_or_of_the_old_one() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode =
        |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    fs::write(folder.path().join("plain"), "").unwrap();
    replace(&folder.path().join("new"), b"").unwrap();
    assert_eq!(mode("new"), mode("plain"));
    fs::set_permissions(folder.path().join("new"), fs::Permissions::from_mode(0o640)).unwrap();
    replace(&folder.path().join("new"), b"").unwrap();
    assert_eq!(mode("new"), 0o640);
}

#[cfg(unix)]
#[test]
fn only_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), "/dev/zero".as_ref()] {
        assert_eq!(open(path).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(open(folder.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
    fs::write(folder.path().join("latin1"), b"caf\xe9").unwrap();
    let error = read_to_string(&folder.path().join("latin1")).unwrap_err();
    assert!(error.to_string().contains("byte 3"), "{error}");
}

#[test]
fn headers_are_read_without_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let header = br#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},
        "a":{"dtype":"I8","shape":[],"data_offsets":[12,13]}}"#;
    let file = |header: &[u8], values: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; values]].concat()
    };
    fs::write(&path, file(header, 13)).unwrap();
    let found = tensor_headers(&path).unwrap();
    let names: Vec<_> = found.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((found[1].values(), found[1].bytes, found[1].dtype.as_str()), (6, 12, "F16"));
    assert_eq!(found[0].values(), 1);
    let mut long = file(header, 13);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, part) in [
        (file(header, 12), "`a` ends after the file"),
        (file(header, 13)[..60].to_vec(), "a header of"),
        (long, "a header of"),
        (b"x".to_vec(), "cut off"),
        (file(b"{\"a\": 3}", 0), "`a`: "),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = tensor_headers(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("x.safetensors"), "no {part} in: {error}");
    }
}
