-- +goose Up

-- Chunks that the store lacks: those on their way, and those that it has lost.
CREATE INDEX chunks_lacking ON chunks (team_id, digest) WHERE NOT stored;

-- +goose Down
DROP INDEX chunks_lacking;
