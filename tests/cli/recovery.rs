//! Trainings that go wrong: numbers that are not finite, disks that are full, kills in between.

use std::fs;

use serde_json::Value;

use super::train::{TRAIN, place};
use super::{Place, golden_pairs, weight_difference};
use crate::close::assert_close;

/// Pairs of which only number 5 asks for a change, by as much as eta says.
fn one_row_with_a_gradient(eta: &str) -> (Place, String) {
    let place = place();
    let mut rows = golden_pairs();
    for (i, row) in rows.iter_mut().enumerate() {
        let win = if i == 5 { 0.9 } else { 0.5 };
        row["chosen_probs_win"] = win.into();
        row["chosen_probs_lose"] = (1.0 - win).into();
    }
    place.write_rows("pairs.jsonl", &rows);
    (place, format!("{TRAIN} --set train.eta={eta}"))
}

fn model(place: &Place, folder: &str) -> Vec<u8> {
    place.bytes(&format!("{folder}/model/model.safetensors"))
}

/// Folders whose names begin with a dot are work that was not finished.
fn remains(place: &Place, folder: &str) -> Vec<String> {
    let of = |path: String| {
        let entries = fs::read_dir(place.path(&path));
        let entries = entries.into_iter().flatten();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap())
    };
    of(folder.into())
        .chain(of(format!("{folder}/checkpoints")))
        .filter(|name| name.starts_with('.'))
        .collect()
}

#[test]
fn a_loss_that_is_not_finite_names_its_row_and_can_be_skipped() {
    let (place, args) = one_row_with_a_gradient("1e200");
    let stderr = place.fails(&args);
    for part in [
        "step 2: the loss is not finite (rows pair-5)",
        "the weights of the step before are kept in checkpoints/",
        "train.on_non_finite = \"skip\" goes on from here",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(place.path("out/checkpoints/step-00000001").is_dir());
    // As advised, from where it stopped.
    let skip = format!("{args} --set train.on_non_finite=skip");
    let ran = place.sppo(&skip);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("2 of 8 steps were skipped"),
        "{}",
        ran.stderr
    );
    let rows = place.rows("out/metrics.jsonl");
    let skipped = |row: &Value| row["skipped"] == true;
    let marks: Vec<bool> = rows.iter().map(skipped).collect();
    let expected = [false, true, false, false, false, true, false, false];
    assert_eq!(marks, expected);
    // The same as without the stop.
    place.ok(&format!("{skip} --set output_dir=whole"));
    assert!(model(&place, "out") == model(&place, "whole"));
}

#[test]
fn a_gradient_that_is_not_finite_names_its_row() {
    let (place, args) = one_row_with_a_gradient("1e100");
    let stderr = place.fails(&args);
    let expected = "step 2: the gradient is not finite (rows pair-5)";
    assert!(stderr.contains(expected), "{stderr}");
}

/// In the first step there is nothing to keep.
#[test]
fn a_first_step_that_fails_leaves_no_checkpoint() {
    let (place, args) = one_row_with_a_gradient("1e200");
    let stderr = place.fails(&format!("{args} --set train.batch_size=16"));
    assert!(stderr.contains("step 1: the loss"), "{stderr}");
    assert!(stderr.contains("nothing was trained yet"), "{stderr}");
    assert!(!place.path("out/checkpoints").exists());
}

#[test]
fn a_training_goes_through_in_parts_that_fit() {
    let place = place();
    let args = format!(
        "{TRAIN} --set train.optimizer=sgd --set train.learning_rate=0.02 --set train.max_grad_norm=1.0"
    );
    place.ok(&format!("{args} --set output_dir=whole"));
    let plan = |more: &str| {
        let plan = args.replace("train --config", "plan --config");
        place.ok_json(&format!("{plan} {more}"))
    };
    let mib = |bytes: &Value| bytes.as_u64().unwrap().div_ceil(1 << 20);
    let whole = plan("");
    assert_eq!(whole["pairs_at_a_time"], 4);
    let most = mib(&whole["training"]["peak"]);
    let least = (1..most)
        .find(|mib| {
            let plan = plan(&format!("--set train.memory_mib={mib}"));
            plan["notes"] == Value::Array(vec![])
        })
        .unwrap();
    let room = format!("--set train.memory_mib={least}");
    // Whole MiB: a second pair of this size may fit.
    assert!(plan(&room)["pairs_at_a_time"].as_u64().unwrap() < 4);
    place.ok(&format!("{args} {room} --set output_dir=parts"));
    let apart = weight_difference(&place.path("whole/model"), &place.path("parts/model"));
    assert_close(apart.into(), 0.0, 1e-6, "weights");
    place.refused(
        &format!("{args} --set train.memory_mib={}", least - 1),
        &["row pair-", "training on it alone takes", "sppo plan"],
    );
}

/// A kill while the trained model replaces an older one.
#[test]
fn half_done_replacements_are_mended() {
    let place = place();
    place.ok(TRAIN);
    let before = model(&place, "out");
    fs::rename(place.path("out/model"), place.path("out/.model.sppo.old")).unwrap();
    fs::create_dir_all(place.path("out/.model.sppo.partial")).unwrap();
    place.write("out/.model.sppo.partial/model.safetensors", "half");
    fs::create_dir_all(place.path("out/checkpoints/.step-00000003.sppo.partial")).unwrap();
    place.ok(TRAIN);
    assert!(model(&place, "out") == before);
    assert_eq!(remains(&place, "out"), Vec::<String>::new());
    // And with the older one still in its place.
    fs::create_dir_all(place.path("out/.model.sppo.old")).unwrap();
    place.ok(TRAIN);
    assert!(model(&place, "out") == before);
    assert_eq!(remains(&place, "out"), Vec::<String>::new());
}

#[cfg(unix)]
mod unix {
    use std::process::{Command, Stdio};

    use super::super::signals::wait_until;
    use super::*;

    fn lines(place: &Place, folder: &str) -> usize {
        let text = fs::read_to_string(place.path(&format!("{folder}/metrics.jsonl")));
        text.unwrap_or_default().lines().count()
    }

    /// Files may grow to half of a checkpoint's size only, as on a disk that is full.
    #[test]
    fn a_full_disk_loses_nothing() {
        let place = place();
        // Long, and with every checkpoint kept, so that nothing hangs on how soon the kill lands.
        let args = format!(
            "{TRAIN} --set train.epochs=6 --set train.checkpoint_every=2 --set train.keep_checkpoints=20"
        );
        place.ok(&format!("{args} --set output_dir=whole"));
        // A sound checkpoint first.
        let mut child = place.start(&args);
        let there = || place.path("out/checkpoints/step-00000002").is_dir();
        wait_until(&mut child, there);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(there());
        fs::remove_dir_all(place.path("out/model")).ok();
        let sound = place.bytes("out/checkpoints/step-00000002/model.safetensors");
        let sppo = env!("CARGO_BIN_EXE_sppo");
        let script = format!("trap '' XFSZ; ulimit -f 300; exec {sppo} {args}");
        let mut limited = Command::new("sh");
        limited.args(["-c", &script]).stdin(Stdio::null());
        let output = limited.current_dir(place.path("")).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("cannot write"), "{stderr}");
        assert_eq!(remains(&place, "out"), Vec::<String>::new());
        let kept = place.bytes("out/checkpoints/step-00000002/model.safetensors");
        assert!(kept == sound);
        place.ok(&args);
        assert!(model(&place, "out") == model(&place, "whole"));
    }

    /// What a cluster sends before it takes the machine away.
    #[test]
    fn sigterm_saves_too() {
        let place = place();
        let args = format!("{TRAIN} --set train.epochs=6");
        place.ok(&format!("{args} --set output_dir=whole"));
        let mut child = place.start(&args);
        assert!(wait_until(&mut child, || lines(&place, "out") >= 2));
        let kill = format!("kill -TERM {}", child.id());
        Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let done = lines(&place, "out");
        assert!(
            place
                .path(&format!("out/checkpoints/step-{done:08}"))
                .is_dir()
        );
        place.ok(&args);
        assert!(model(&place, "out") == model(&place, "whole"));
    }

    /// bf16 weights with their masters, and AdamW's two tensors, go on to the bit.
    #[test]
    #[cfg(feature = "flex")]
    fn every_state_is_resumed_to_the_bit() {
        let place = place();
        for (name, more) in [
            ("bf16", "--set train.precision=bf16 --device flex"),
            ("adamw", "--set train.optimizer=adamw"),
        ] {
            let args =
                format!("{TRAIN} {more} --set train.epochs=6 --set train.checkpoint_every=1");
            place.ok(&format!("{args} --set output_dir={name}-whole"));
            let run = format!("{args} --set output_dir={name}");
            for target in [2, 5] {
                let mut child = place.start(&run);
                wait_until(&mut child, || lines(&place, name) >= target);
                child.kill().unwrap();
                child.wait().unwrap();
            }
            assert!(
                !place.path(&format!("{name}/model")).exists(),
                "killed too late"
            );
            place.ok(&run);
            assert!(model(&place, name) == model(&place, &format!("{name}-whole")));
        }
    }
}
