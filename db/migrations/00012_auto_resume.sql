-- +goose Up

-- Whether traffic to one of its open ports wakes the sandbox while it is paused.
ALTER TABLE sandboxes ADD COLUMN auto_resume boolean NOT NULL DEFAULT false;

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN auto_resume;
