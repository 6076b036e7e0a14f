#!/usr/bin/env python3
"""Decrypts one object of a backup, independently of the library that wrote it.

    python3 decrypt.py --keys DIR (--key-file FILE | --passphrase-env VAR)
                       --set SET --id ID [--written-as ID] --artifact NAME < stored.enc > out

DIR is the directory `keys/` of the backup. SET and ID are the set and id of the backup, NAME the name of the
artifact, without its extensions. What comes out is what was encrypted: pipe it into `gunzip` or `zstd -d`
where the name of the object says so. Needs Python 3.8 and `pip install cryptography`.

The exit status is 0 only when the whole object was authentic. Data that was written before an error is
authentic, but not complete: do not use it as a backup.

Written from the description in docs/format.md, not from the library's source.
"""
import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_HEADER, MAX_SEGMENT, TAG = 64 * 1024, 4 * 1024 * 1024, 16


class Failure(Exception):
    """Something a person has to know; the program ends."""


def hkdf(key, salt, info, length):
    """HKDF-SHA256, RFC 5869."""
    pseudo_random = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    output, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(pseudo_random, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
    return output[:length]


def fields(*parts):
    """Every part after its length as 4 bytes, big-endian."""
    parts = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def read_key(path):
    with open(path, "rb") as file:
        content = file.read(4096)
    if len(content) == 32:
        return content
    text = content.strip()
    if re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text.decode())
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise Failure(f"{path}: a key is 32 bytes, raw, as 64 hexadecimal digits, or as base64")
    return key


def key_id(raw):
    return "k-" + hkdf(raw, b"", b"backup key id v1", 8).hex()


def entry_id(entry):
    names = ("kdf", "rounds", "cipher", "salt", "nonce", "sealed")
    content = "".join(f"{entry[name]}\n" for name in names)
    return "p-" + hashlib.sha256(content.encode()).hexdigest()[:16]


def open_entry(entry, passphrase):
    """The random key that a passphrase opens, or None."""
    if (entry["format"], entry["kdf"], entry["cipher"]) != (1, "pbkdf2-hmac-sha256", "aes-256-gcm"):
        raise Failure("a keyring entry has a newer format")
    rounds, salt = entry["rounds"], bytes.fromhex(entry["salt"])
    if not 600_000 <= rounds <= 10_000_000:
        raise Failure("a keyring entry wants an unreasonable number of PBKDF2 rounds")
    stretched = hashlib.pbkdf2_hmac("sha256", passphrase, salt, rounds)
    bound = fields("backup keyring entry v1", struct.pack(">I", rounds), salt)
    try:
        return AESGCM(stretched).decrypt(bytes.fromhex(entry["nonce"]), bytes.fromhex(entry["sealed"]), bound)
    except InvalidTag:
        return None


def backup_key(directory, raw, passphrase, backup_set, backup_id):
    """Opens the backup's key with the first file that is for us."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    for name in names:
        with open(os.path.join(directory, name), "rb") as file:
            wrap = json.loads(file.read(64 * 1024))
        this_id, entry = name[: -len(".json")], wrap.get("passphrase")
        if raw is not None and this_id == key_id(raw):
            wrapping = raw
        elif passphrase is not None and entry is not None:
            if entry_id(entry) != this_id:
                raise Failure(f"{name}: the keyring entry in it is damaged")
            wrapping = open_entry(entry, passphrase)
            if wrapping is None:
                continue
        else:
            continue
        if (wrap["format"], wrap["cipher"], wrap["key"]) != (1, "aes-256-gcm", this_id):
            raise Failure(f"{name}: damaged, or of a newer format")
        bound = fields("backup key wrap v1", backup_set, backup_id, this_id)
        cipher = AESGCM(hkdf(wrapping, b"", b"backup key wrap v1", 32))
        try:
            return cipher.decrypt(bytes.fromhex(wrap["nonce"]), bytes.fromhex(wrap["sealed"]), bound)
        except InvalidTag:
            raise Failure(f"{name}: damaged, or of another set or backup") from None
    raise Failure(f"this key or passphrase opens none of: {' '.join(names) or 'no files'}")


def decrypt(key, backup_set, backup_id, artifact, source, sink):
    start = source.read(16)
    if len(start) < 16 or start[:8] != b"BKUPENC\x01":
        raise Failure("this is not an encrypted object of format 1")
    header_len, segment = struct.unpack(">II", start[8:])
    if not 88 <= header_len <= MAX_HEADER or not 1 <= segment <= MAX_SEGMENT:
        raise Failure("the header is damaged")
    header = start + source.read(header_len - 16)
    if len(header) != header_len or hashlib.sha256(header[:-8]).digest()[:8] != header[-8:]:
        raise Failure("the header is damaged")
    info = fields("backup object aes-256-gcm v1", backup_set, backup_id, artifact)
    derived = hkdf(key, header[16:48], info, 64)
    if not hmac.compare_digest(derived[32:], header[48:80]):
        raise Failure("another key, or another set, id or artifact name than this object was written with")
    cipher, number = AESGCM(derived[:32]), 0
    sealed = source.read(segment + TAG)
    while True:
        following = source.read(segment + TAG)
        last = not following
        nonce = bytes(7) + struct.pack(">IB", number, last)
        try:
            plain = cipher.decrypt(nonce, sealed, header) if len(sealed) >= TAG else None
        except InvalidTag:
            plain = None
        if plain is None or (not plain and number > 0):
            raise Failure(f"segment {number} is damaged, or the object was cut off, extended or reordered")
        sink.write(plain)
        if last:
            sink.flush()
            return
        sealed, number = following, number + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--keys", required=True, help="the directory keys/ of the backup")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--key-file", help="file with the 256-bit key: raw, hexadecimal or base64")
    secret.add_argument("--passphrase-env", help="environment variable that holds the passphrase")
    parser.add_argument("--set", required=True, dest="backup_set")
    parser.add_argument("--id", required=True, dest="backup_id")
    parser.add_argument("--written-as", help="`written_as` of the object in the manifest, where it has one")
    parser.add_argument("--artifact", required=True)
    args = parser.parse_args()
    raw = passphrase = None
    if args.key_file:
        raw = read_key(args.key_file)
    else:
        passphrase = os.environb.get(args.passphrase_env.encode())
        if not passphrase:
            raise Failure(f"the environment variable {args.passphrase_env} is not set")
    key = backup_key(args.keys, raw, passphrase, args.backup_set, args.backup_id)
    decrypt(key, args.backup_set, args.written_as or args.backup_id, args.artifact, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    try:
        main()
    except (Failure, OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"decrypt.py: {error!r}" if isinstance(error, KeyError) else f"decrypt.py: {error}")
