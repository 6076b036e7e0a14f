//! What the proof of a restore does to the server, and what it notices.

use std::time::{Duration, Instant};

use backup_core::{ErrorKind, RestoreTarget};
use backup_redis::RedisRdb;

use crate::backup::{filled, taken};
use crate::data::assert_same;
use crate::restore::{empty, into, restore};
use crate::support::{ALL, Client, REDIS, REDIS8};

fn compression(client: &mut Client) -> String {
    client.ok(&["CONFIG", "GET", "rdbcompression"]).array()[1].text()
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_is_off_for_the_read_back_and_on_again_after_it() {
    for store in ALL {
        let (Some(source), Some(server)) = (filled(store), empty(store, &[])) else { continue };
        let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
        let mut client = server.client();
        client.ok(&["CONFIG", "RESETSTAT"]);
        restore(&into(&server), &captured, false).await.unwrap();
        let stats = client.ok(&["INFO", "commandstats"]).text();
        // Two writes, off and on. Before 7.0 they are counted together with what was read of the configuration.
        let counted =
            stats.contains("cmdstat_config|set:calls=2,") || stats.contains("cmdstat_config:calls=");
        assert!(counted, "{}: {stats}", store.name);
        assert_eq!(compression(&mut client), "yes", "{}", store.name);
        assert_same(&mut source.client(), &mut client);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_compress_is_left_so() {
    let (Some(source), Some(server)) = (filled(REDIS), empty(REDIS, &["--rdbcompression", "no"])) else {
        return;
    };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    restore(&into(&server), &captured, false).await.unwrap();
    assert_eq!(compression(&mut server.client()), "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_back_that_is_dropped_switches_compression_on_again() {
    // The server waits for more replicas before it begins: the read-back is dropped while it does.
    let (Some(source), Some(server)) =
        (filled(REDIS), empty(REDIS, &["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "600"]))
    else {
        return;
    };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let begun = into(&server).begin(&captured.plan(false)).await.unwrap();
    begun.artifact(captured.readers().remove(0)).await.unwrap();
    let mut client = server.client();
    let proving = begun.prove();
    let off = async {
        while compression(&mut client) != "no" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = proving => panic!("the server sent without waiting"),
        () = off => {}
    }
    let give_up = Instant::now() + Duration::from_secs(30);
    while compression(&mut client) != "yes" {
        assert!(Instant::now() < give_up, "compression is still off");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.abort().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_that_another_client_wrote_first_is_not_overwritten() {
    let (Some(source), Some(server)) = (filled(REDIS8), empty(REDIS8, &[])) else { return };
    let captured = taken(&RedisRdb::connect(&source.url()).unwrap()).await;
    let begun = into(&server).in_place().begin(&captured.plan(false)).await.unwrap();
    let mut client = server.client();
    client.ok(&["SET", "string:short", "theirs"]);
    let error = begun.artifact(captured.readers().remove(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetNotEmpty, "{}", error.chain());
    assert_eq!(client.ok(&["GET", "string:short"]).text(), "theirs");
    begun.abort().await.unwrap();
}
