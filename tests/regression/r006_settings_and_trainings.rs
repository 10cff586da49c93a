//! A setting without effect made a finished training anew, and one with an effect deleted it.
#![cfg(unix)]

use std::fs;

use crate::cli::Place;
use crate::cli::train::{TRAIN, place};

fn aside(place: &Place, folder: &str) -> String {
    let folders = fs::read_dir(place.path("")).unwrap();
    let mut names = folders.map(|e| e.unwrap().file_name().into_string().unwrap());
    names
        .find(|name| name.starts_with(&format!("{folder}.before-")))
        .expect("something is set aside")
}

#[test]
fn what_has_no_effect_repeats_nothing() {
    let place = place();
    place.ok(TRAIN);
    let before = place.bytes("out/metrics.jsonl");
    for more in [
        "train.beta2=0.5",
        "train.checkpoint_every=3",
        "train.recompute=layer",
        "train.keep_checkpoints=9",
    ] {
        let ran = place.sppo(&format!("{TRAIN} --set {more}"));
        assert!(
            ran.stderr.contains("nothing to do"),
            "{more}: {}",
            ran.stderr
        );
        assert_eq!(place.bytes("out/metrics.jsonl"), before, "{more}");
    }
}

#[test]
fn another_training_is_set_aside() {
    let place = place();
    place.ok(TRAIN);
    let (model, metrics) = (
        place.bytes("out/model/model.safetensors"),
        place.bytes("out/metrics.jsonl"),
    );
    let ran = place.sppo(&format!("{TRAIN} --set train.learning_rate=2e-4"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let aside = aside(&place, "out");
    for part in ["learning_rate: was 0.0001, is 0.0002", &aside] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert_eq!(
        place.bytes(&format!("{aside}/model/model.safetensors")),
        model
    );
    assert_eq!(place.bytes(&format!("{aside}/metrics.jsonl")), metrics);
    assert_ne!(place.bytes("out/model/model.safetensors"), model);
    // A second one on the same day gets a name of its own.
    place.ok(TRAIN);
    assert_eq!(place.bytes(&format!("{aside}/metrics.jsonl")), metrics);
    assert!(place.path(&format!("{aside}-2/metrics.jsonl")).exists());
}

#[test]
fn stop_at_epoch_goes_on() {
    let whole = place();
    whole.ok(TRAIN);
    let place = place();
    place.ok(&format!("{TRAIN} --set train.stop_at_epoch=1"));
    let first = place.read("out/metrics.jsonl");
    place.ok(&format!("{TRAIN} --set train.stop_at_epoch=2"));
    assert!(
        place.read("out/metrics.jsonl").starts_with(&first),
        "the first epoch is not repeated"
    );
    let name = "out/model/model.safetensors";
    assert_eq!(place.bytes(name), whole.bytes(name));
}

#[test]
fn a_run_keeps_what_still_holds() {
    let place = crate::cli::run::place();
    let run = "run --config run.toml --set output_dir=out --set iterations=1";
    place.ok(run);
    let responses = place.bytes("out/iteration-1/responses.jsonl");
    let model = place.bytes("out/iteration-1/model/model.safetensors");
    let ran = place.sppo(&format!("{run} --set train.learning_rate=2e-4"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("out/iteration-1.before-"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.bytes("out/iteration-1/responses.jsonl"), responses);
    let folders = fs::read_dir(place.path("out")).unwrap();
    let mut names = folders.map(|e| e.unwrap().file_name().into_string().unwrap());
    let aside = names
        .find(|name| name.starts_with("iteration-1.before-"))
        .unwrap();
    assert_eq!(
        place.bytes(&format!("out/{aside}/model/model.safetensors")),
        model
    );
    assert!(!place.path(&format!("out/{aside}/responses.jsonl")).exists());
}

/// The configuration that a run saved, edited and given again, is not written over.
#[test]
fn an_edited_configuration_stays() {
    let place = crate::cli::run::place();
    place.ok("run --config run.toml --set output_dir=out --set iterations=1");
    let edited = format!("# my notes\n{}", place.read("out/config.toml"));
    place.write("out/config.toml", &edited);
    let ran = place.sppo("run --config out/config.toml");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("out/config.toml was edited and stays"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.read("out/config.toml"), edited);
}
