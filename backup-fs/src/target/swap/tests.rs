//! Dying after each step.

use std::path::Path;

use super::*;
use crate::target::stage::Destination;

fn stage(dir: &Path) -> Stage {
    let destination = Destination::find(&dir.join("to"), true).unwrap();
    let stage = Stage::create(destination, "20261120T020000Z-9f04c1".parse().unwrap()).unwrap();
    let name = str::from_utf8(&stage.name).unwrap();
    std::fs::write(dir.join(name).join("tree/new"), "new").unwrap();
    stage
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn whatever_step_was_the_last_old_or_new_is_complete_and_the_old_is_never_lost() {
    for exchange in [true, false] {
        for last in [Step::Journaled, Step::MovedAway, Step::Exchanged, Step::Kept] {
            if exchange && last == Step::MovedAway {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let to = dir.path().join("to");
            std::fs::create_dir(&to).unwrap();
            std::fs::write(to.join("old"), "old").unwrap();

            let stage = stage(dir.path());
            let died =
                swap(
                    &stage,
                    exchange,
                    |step| {
                        if step == last { Err(Error::cancelled("die")) } else { Ok(()) }
                    },
                );
            assert!(died.is_err());
            // A dead process drops nothing, but its locks are gone.
            stage.keep();
            drop(stage);
            // Without the exchange there is a moment at which nothing is at the destination.
            if last != Step::MovedAway {
                assert_eq!(names(&to).len(), 1, "{last:?}");
            }

            let parent = Destination::find(&to, true).unwrap().parent;
            recover(&parent, b"to").unwrap();
            let all = names(dir.path());
            if matches!(last, Step::Journaled | Step::MovedAway) {
                assert_eq!(names(&to), ["old"], "{last:?}");
                assert_eq!(all, ["to"]);
            } else {
                assert_eq!(names(&to), ["new"], "{last:?}");
                assert_eq!(all.len(), 2, "{all:?}");
                assert!(all[0].starts_with(".to.before-"));
                assert_eq!(names(&dir.path().join(&all[0])), ["old"]);
            }
        }
    }
}

#[test]
fn an_error_after_the_exchange_does_not_remove_the_old_tree() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("old"), "old").unwrap();
    let stage = stage(dir.path());
    let error =
        swap(
            &stage,
            true,
            |step| {
                if step == Step::Exchanged { Err(Error::cancelled("fail")) } else { Ok(()) }
            },
        );
    assert!(error.is_err());
    drop(stage);
    Destination::find(&to, true).unwrap();
    let all = names(dir.path());
    assert_eq!(names(&dir.path().join(&all[0])), ["old"], "{all:?}");
}

#[tokio::test]
async fn undo_and_drop_work_without_the_exchange_too() {
    for undo in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("old"), "old").unwrap();
        let stage = stage(dir.path());
        let kept = Box::new(swap(&stage, false, |_| Ok(())).unwrap().unwrap());
        stage.remove().unwrap();
        assert_eq!(names(&to), ["new"]);
        if undo {
            Undo::undo(kept).await.unwrap();
            assert_eq!(names(&to), ["old"]);
        } else {
            Undo::drop_old(kept).await.unwrap();
            assert_eq!(names(&to), ["new"]);
        }
        assert_eq!(names(dir.path()), ["to"]);
    }
}

#[test]
fn a_journal_that_leads_elsewhere_or_lies_open_is_left_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let name = ".to.restore-20261120T020000Z-9f04c1-0123abcd";
    for (mode, destination, keep_as) in [
        (0o700, "to", "../escaped"),
        (0o700, "to", ".to.before-x/../../escaped"),
        (0o700, "other", ".to.before-x"),
        (0o777, "to", ".to.before-x"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        std::fs::create_dir_all(place.join(name).join("tree")).unwrap();
        let journal = format!(r#"{{"destination":"{destination}","new_inode":1,"keep_as":"{keep_as}"}}"#);
        std::fs::write(place.join(name).join("swap.json"), journal).unwrap();
        std::fs::set_permissions(place.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        let parent = OwnedFd::from(std::fs::File::open(&place).unwrap());
        recover(&parent, b"to").unwrap();
        assert_eq!(names(&place), [name], "{keep_as}");
        assert_eq!(names(dir.path()), ["place"]);
    }
}
