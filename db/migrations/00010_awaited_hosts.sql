-- +goose Up

-- Until when nothing is started that a host may have begun to run after this
-- database was backed up: it was restored since, and the host was not yet looked
-- at. NULL is no such host.
ALTER TABLE hosts ADD COLUMN awaited_until timestamptz;

-- +goose Down
ALTER TABLE hosts DROP COLUMN awaited_until;
