-- A feedback project: what is judged, by whom, and every judgment that was ever given.

CREATE TABLE project (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    name          TEXT NOT NULL,
    criterion     TEXT NOT NULL,
    mode          TEXT NOT NULL CHECK (mode IN ('rank', 'pair', 'thumbs')),
    num_labelers  INTEGER NOT NULL CHECK (num_labelers > 0),
    repeat_share  REAL NOT NULL,     -- of a labeler's items, shown to the same labeler twice
    gold_share    REAL NOT NULL,     -- of what a labeler is shown, control items
    next_item     TEXT NOT NULL CHECK (next_item IN ('random', 'least', 'active')),
    random_share  REAL NOT NULL,     -- of active choices, made at random
    lease_minutes REAL NOT NULL,
    seed          INTEGER NOT NULL,  -- of the order in which each labeler sees completions
    created       REAL NOT NULL      -- seconds since 1970, as every time here
);

CREATE TABLE instructions (version INTEGER PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL);

CREATE TABLE items (
    id          INTEGER PRIMARY KEY,
    key         TEXT NOT NULL UNIQUE,           -- of its texts: importing twice adds nothing
    prompt      TEXT NOT NULL,                  -- JSON
    completions TEXT NOT NULL,                  -- JSON list
    sources     TEXT NOT NULL,                  -- JSON list of model names; for audit alone
    category    TEXT NOT NULL,
    gold        TEXT,                           -- JSON ranks of a control item
    size        INTEGER NOT NULL,               -- number of completions
    needed      INTEGER NOT NULL,               -- distinct labelers wanted
    place       REAL NOT NULL,                  -- random in [0, 1), by which draws are made
    taken       INTEGER NOT NULL DEFAULT 0,     -- labelers who have it now or have judged it
    uncertainty REAL NOT NULL DEFAULT 1,        -- in [0, 1], what active choice goes by
    retired     INTEGER NOT NULL DEFAULT 0,     -- 1: shown to nobody any more
    added       REAL NOT NULL
);

-- Open items in the three orders in which they are drawn.
CREATE INDEX open_by_place ON items (place)
    WHERE taken < needed AND retired = 0 AND gold IS NULL;
CREATE INDEX open_by_taken ON items (taken, place)
    WHERE taken < needed AND retired = 0 AND gold IS NULL;
CREATE INDEX open_by_uncertainty ON items (uncertainty DESC, place)
    WHERE taken < needed AND retired = 0 AND gold IS NULL;
CREATE INDEX gold_by_place ON items (place) WHERE gold IS NOT NULL AND retired = 0;
-- For counting, since the rows hold long texts. Not by `retired` first: draws would use it too.
CREATE INDEX states ON items (needed, taken, retired) WHERE gold IS NULL;
CREATE INDEX retired_items ON items (id) WHERE retired = 1;

CREATE TABLE people (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    role    TEXT NOT NULL CHECK (role IN ('labeler', 'administrator')),
    team    TEXT NOT NULL DEFAULT '',   -- the group; labels can be filtered by it
    token   TEXT UNIQUE,                -- SHA-256 of the invitation's token; NULL: none, or revoked
    joined  REAL NOT NULL,
    revoked REAL
);

CREATE TABLE assignments (
    id      INTEGER PRIMARY KEY,
    item    INTEGER NOT NULL REFERENCES items (id),
    labeler INTEGER NOT NULL REFERENCES people (id),
    repeat  INTEGER NOT NULL,           -- 1: the planned second showing
    shown   TEXT NOT NULL,              -- JSON: shown[p] = completion at place p of the page
    state   TEXT NOT NULL CHECK (state IN ('planned', 'leased', 'expired', 'done', 'released')),
    expires REAL NOT NULL,              -- of a lease
    due     INTEGER NOT NULL,           -- a planned repeat: after this many judgments
    UNIQUE (item, labeler, repeat)
);
CREATE INDEX leases ON assignments (expires) WHERE state = 'leased';
CREATE INDEX own_open ON assignments (labeler, state, due) WHERE state IN ('planned', 'leased');

CREATE TABLE judgments (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    submission   TEXT NOT NULL UNIQUE,  -- the page's own number: sent twice, stored once
    assignment   INTEGER NOT NULL REFERENCES assignments (id),
    labeler      INTEGER NOT NULL REFERENCES people (id),
    verdict      TEXT NOT NULL CHECK (verdict IN ('ranked', 'skipped', 'flagged')),
    ranks        TEXT,                  -- JSON, in the stored order of the completions
    strength     INTEGER,
    reason       TEXT NOT NULL DEFAULT '',
    shown        TEXT NOT NULL,
    instructions INTEGER NOT NULL REFERENCES instructions (version),
    seconds      REAL,
    created      REAL NOT NULL,
    supersedes   INTEGER UNIQUE REFERENCES judgments (id)
);
CREATE INDEX judgments_of ON judgments (labeler, id);
CREATE INDEX judgments_on ON judgments (assignment, id);
CREATE INDEX judgments_noted ON judgments (verdict, id DESC) WHERE verdict <> 'ranked';

CREATE TRIGGER judgments_stay BEFORE UPDATE ON judgments
    BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;
CREATE TRIGGER judgments_are_kept BEFORE DELETE ON judgments
    BEGIN SELECT RAISE(ABORT, 'judgments are append-only'); END;

CREATE VIEW current_judgments AS
    SELECT * FROM judgments AS j
    WHERE NOT EXISTS (SELECT 1 FROM judgments AS later WHERE later.supersedes = j.id);

-- `taken` counts first showings that are leased or done; a skip, a flag or an expiry frees the slot.
CREATE TRIGGER taken_by_a_new_one AFTER INSERT ON assignments
    WHEN NEW.repeat = 0 AND NEW.state IN ('leased', 'done')
    BEGIN UPDATE items SET taken = taken + 1 WHERE id = NEW.item; END;
CREATE TRIGGER taken_by_an_old_one AFTER UPDATE OF state ON assignments
    WHEN NEW.repeat = 0
    BEGIN UPDATE items
        SET taken = taken + (NEW.state IN ('leased', 'done')) - (OLD.state IN ('leased', 'done'))
        WHERE id = NEW.item; END;
