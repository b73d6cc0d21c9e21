-- +goose Up

-- How many entries about what a host claims the trail took on a day (UTC): a host
-- may claim anything, and the trail keeps what it is told.
CREATE TABLE host_tales (
    host_id uuid   PRIMARY KEY REFERENCES hosts (id),
    day     date   NOT NULL,
    told    bigint NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON host_tales TO skerry_app;

-- +goose Down
DROP TABLE host_tales;
