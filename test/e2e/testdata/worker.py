"""A program that never stops changing things in a sandbox, and tells on a port
how far it is. With the argument "look" it checks everything it left there."""

import glob, hashlib, json, os, socket, sqlite3, sys, threading, time

HOME = "/home/user"
DATABASE = HOME + "/rows.db"
PORT = 8080

seen = {"n": 0, "row": 0, "echo": 0, "back": 0}


def text(n):
    return hashlib.sha256(str(n).encode()).hexdigest()


def count():
    last = time.monotonic()
    while True:
        seen["n"] += 1
        now = time.monotonic()
        if now < last:
            seen["back"] += 1
        last = now
        time.sleep(0.05)


def write():
    db = sqlite3.connect(DATABASE, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA wal_autocheckpoint=50")
    db.execute("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    n = 0
    while True:
        n += 1
        db.execute("INSERT INTO rows VALUES (?, ?)", (n, text(n)))
        seen["row"] = n  # acknowledged
        time.sleep(0.05)


def serve(listener):
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=answer, args=(conn,), daemon=True).start()


def answer(conn):
    with conn, conn.makefile("rw") as f:
        for line in f:
            f.write(json.dumps(dict(seen, pid=os.getpid())) + "\n")
            f.flush()


def talk():
    """Holds one connection inside the sandbox for ever."""
    with socket.create_connection(("127.0.0.1", PORT)) as conn, conn.makefile("rw") as f:
        while True:
            f.write("?\n")
            f.flush()
            if not f.readline():
                return
            seen["echo"] += 1
            time.sleep(0.1)


def work():
    listener = socket.create_server(("0.0.0.0", PORT))
    for f in (count, write, talk):
        threading.Thread(target=f, daemon=True).start()
    serve(listener)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def look():
    out = {"now": time.time()}
    try:
        with socket.create_connection(("127.0.0.1", PORT), timeout=20) as conn, conn.makefile("rw") as f:
            f.write("?\n")
            f.flush()
            out["worker"] = json.loads(f.readline())
    except OSError as e:
        out["silent"] = str(e)
    db = sqlite3.connect(DATABASE, timeout=20)
    rows = db.execute("SELECT n, text FROM rows ORDER BY n").fetchall()
    out["integrity"] = db.execute("PRAGMA integrity_check").fetchone()[0]
    out["rows"] = len(rows)
    out["wrong"] = sum(1 for i, (n, t) in enumerate(rows) if n != i + 1 or t != text(n))
    out["files"] = {os.path.basename(p): digest(p) for p in glob.glob(HOME + "/data/*")}
    with open("/proc/sys/kernel/random/boot_id") as f:
        out["boot"] = f.read().strip()
    print(json.dumps(out))


look() if sys.argv[1:] == ["look"] else work()
