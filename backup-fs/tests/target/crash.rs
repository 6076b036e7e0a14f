//! Processes that are killed while they restore.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use backup_fs::DirectoryTarget;

use crate::support::*;

const CHILD: &str = "BACKUP_FS_TEST_CRASH_DIR";
const FILES: usize = 60;
const KILLS: u64 = 25;

/// Not a test of its own: what the killed process does.
#[tokio::test]
async fn child_restores_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    loop {
        for variant in ["a", "b"] {
            let archive = std::fs::read(dir.join(variant).with_extension("tar")).unwrap();
            let mut plan = plan(&archive);
            plan.replace = true;
            let target = DirectoryTarget::new(dir.join("place/to"));
            let (_, _, undo) = restore(&target, &plan, &archive).await.unwrap();
            if let Some(undo) = undo {
                undo.drop_old().await.unwrap();
            }
        }
    }
}

/// One whole tree of one variant.
fn whole(tree: &Path) -> bool {
    let contents: Vec<Vec<u8>> =
        (0..FILES).filter_map(|n| std::fs::read(tree.join(format!("d{}/f{n}", n % 7))).ok()).collect();
    contents.len() == FILES && contents.iter().all(|c| *c == contents[0])
}

#[tokio::test]
async fn a_killed_restore_leaves_the_old_or_the_new_tree_and_the_next_one_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    for variant in ["a", "b"] {
        let tree = dir.path().join(variant);
        for n in 0..FILES {
            std::fs::create_dir_all(tree.join(format!("d{}", n % 7))).unwrap();
            std::fs::write(tree.join(format!("d{}/f{n}", n % 7)), variant).unwrap();
        }
        std::fs::write(tree.with_extension("tar"), tar(&tree, &[])).unwrap();
    }
    let place = dir.path().join("place");
    let to = place.join("to");
    std::fs::create_dir(&place).unwrap();
    run("cp", &["-a", "a", "place/to"], dir.path());

    let mut leftovers = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_restores_until_it_is_killed", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over several rounds of the child, at a different phase each time.
        tokio::time::sleep(Duration::from_millis(20 + kill * 37 % 101)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(whole(&to), "after kill {kill}");
        leftovers += names(&place).len() - 1;

        // The next restore, here one that is given up again, puts away what was left.
        let mut plan = plan(&[]);
        plan.replace = true;
        drop(backup_core::RestoreTarget::begin(&DirectoryTarget::new(&to), &plan).await.unwrap());
        assert!(whole(&to), "after cleaning up kill {kill}");
        for name in names(&place) {
            assert!(name == "to" || name.starts_with(".to.before-"), "{name} is left");
            assert!(whole(&place.join(&name)), "{name} is a whole tree");
            if name != "to" {
                std::fs::remove_dir_all(place.join(name)).unwrap();
            }
        }
    }
    assert!(leftovers > 0, "no kill hit a restore: the test tests nothing");
}
