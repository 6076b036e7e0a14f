//! How to restore with the servers' own programs: the lines of `RESTORE.txt`.

use backup_core::Recipe;

use crate::discover::Server;

/// For artifacts of these names. Names are made by this crate and need no quotes.
pub(crate) fn recipe<'a>(server: &Server, artifacts: impl IntoIterator<Item = &'a str>) -> Recipe {
    // Valkey's programs have its name; anything else calls itself as Redis does.
    let program = if server.name == "valkey" { "valkey" } else { "redis" };
    let mut recipe = Recipe { before: vec!["mkdir restored".to_owned()], ..Recipe::default() };
    let mut files = Vec::new();
    for name in artifacts {
        let file = format!("{name}.rdb");
        recipe.commands.insert(name.to_owned(), format!("cat > restored/{file}"));
        recipe.after.push(format!("{program}-check-rdb restored/{file}"));
        files.push(file);
    }
    if server.cluster {
        recipe.after.push(format!(
            "# Each file holds one shard. Start a server on each with `cluster-enabled yes`, `appendonly no` and\n\
             # `dbfilename` set to it, give it the slots of its keys, and join the servers:\n\
             # {program}-cli --cluster fix <host:port>, then {program}-cli --cluster rebalance <host:port>"
        ));
    } else if let [file] = files.as_slice() {
        recipe.after.push(format!(
            "# A server on the restored data; without `--appendonly no` it would ignore the file.\n\
             {program}-server --dir \"$PWD/restored\" --dbfilename {file} --appendonly no --save '' \\\n    \
             --bind 127.0.0.1 --port \"${{PORT:-6380}}\" --daemonize yes --pidfile \"$PWD/restored/server.pid\""
        ));
    }
    recipe
}
