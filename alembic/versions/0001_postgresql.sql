-- Triggers for PostgreSQL. They do what those of SQLite do: write the events, keep the queue's counter ahead of every rank,
-- and complete the columns that an operator omits. They also notify the servers of changes.

-- Only operators change ranks. Lock the queue before any session, as the servers do, so that neither waits for the other.
CREATE FUNCTION session_lock_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM name FROM queue ORDER BY name FOR NO KEY UPDATE;
    RETURN NULL;
END $$;
CREATE TRIGGER session_lock_queue BEFORE UPDATE OF rank ON session
FOR EACH STATEMENT EXECUTE FUNCTION session_lock_queue();

CREATE FUNCTION session_joined() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE queue SET last_rank = NEW.rank WHERE name = NEW.queue AND last_rank < NEW.rank;
    INSERT INTO event (at, what, session_id) VALUES (NEW.created_at, 'session_joined', NEW.session_id);
    RETURN NULL;
END $$;
CREATE TRIGGER session_joined AFTER INSERT ON session
FOR EACH ROW EXECUTE FUNCTION session_joined();

CREATE FUNCTION session_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE queue SET last_rank = NEW.rank WHERE name = NEW.queue AND last_rank < NEW.rank;
    INSERT INTO event (at, what, session_id, detail) VALUES (
        clock_timestamp(), 'session_moved', NEW.session_id, 'from rank ' || OLD.rank || ' to rank ' || NEW.rank
    );
    RETURN NULL;
END $$;
CREATE TRIGGER session_moved AFTER UPDATE OF rank ON session
FOR EACH ROW WHEN (NEW.rank <> OLD.rank) EXECUTE FUNCTION session_moved();

CREATE FUNCTION session_complete() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    free slot;
BEGIN
    CASE NEW.state
    WHEN 'active' THEN
        NEW.activated_at := coalesce(NEW.activated_at, clock_timestamp());
        IF NEW.host IS NULL OR NEW.slot IS NULL THEN
            SELECT slot.* INTO free FROM slot JOIN lab_host ON lab_host.name = slot.host
            WHERE slot.host = coalesce(NEW.host, slot.host) AND slot.slot = coalesce(NEW.slot, slot.slot)
            AND (lab_host.queue = NEW.queue OR NEW.host IS NOT NULL)
            ORDER BY EXISTS (
                SELECT FROM session AS busy
                WHERE busy.host = slot.host AND busy.slot = slot.slot AND busy.state = 'active'
            ), NOT slot.is_open, slot.slot, slot.host LIMIT 1;
            IF NOT FOUND THEN
                RAISE check_violation USING MESSAGE =
                    'constraint failed: no host serves the queue of this session, or it has no such slot';
            END IF;
            NEW.host := free.host;
            NEW.slot := free.slot;
        END IF;
    WHEN 'waiting' THEN
        NEW.host := NULL;
        NEW.slot := NULL;
        NEW.activated_at := NULL;
        NEW.ended_at := NULL;
        NEW.end_code := NULL;
        NEW.end_detail := NULL;
    WHEN 'ended' THEN
        NEW.ended_at := coalesce(NEW.ended_at, clock_timestamp());
        NEW.end_code := coalesce(NEW.end_code, 'operator');
        NEW.end_detail := coalesce(NEW.end_detail, 'ended by an operator');
    ELSE
        NULL;  -- a state that does not exist, which a constraint refuses
    END CASE;
    RETURN NEW;
END $$;
CREATE TRIGGER session_complete BEFORE UPDATE OF state ON session
FOR EACH ROW WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION session_complete();

CREATE FUNCTION session_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE NEW.state
    WHEN 'active' THEN
        INSERT INTO event (at, what, session_id, host, slot)
        VALUES (NEW.activated_at, 'session_granted', NEW.session_id, NEW.host, NEW.slot);
    WHEN 'waiting' THEN
        INSERT INTO event (at, what, session_id, host, slot)
        VALUES (clock_timestamp(), 'session_requeued', NEW.session_id, OLD.host, OLD.slot);
    WHEN 'ended' THEN
        INSERT INTO event (at, what, session_id, host, slot, code, detail)
        VALUES (NEW.ended_at, 'session_ended', NEW.session_id, NEW.host, NEW.slot, NEW.end_code, NEW.end_detail);
    END CASE;
    RETURN NULL;
END $$;
CREATE TRIGGER session_changed AFTER UPDATE OF state ON session
FOR EACH ROW WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION session_changed();

CREATE FUNCTION session_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event (at, what, session_id, host, slot, code, detail) VALUES (
        clock_timestamp(), 'session_ended', OLD.session_id, OLD.host, OLD.slot, 'operator', 'removed by an operator'
    );
    RETURN NULL;
END $$;
CREATE TRIGGER session_removed AFTER DELETE ON session
FOR EACH ROW WHEN (OLD.state <> 'ended') EXECUTE FUNCTION session_removed();

CREATE FUNCTION lab_starting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event (at, what, session_id, lab_id, host, slot)
    VALUES (NEW.started_at, 'lab_starting', NEW.session_id, NEW.lab_id, NEW.host, NEW.slot);
    RETURN NULL;
END $$;
CREATE TRIGGER lab_starting AFTER INSERT ON lab
FOR EACH ROW EXECUTE FUNCTION lab_starting();

CREATE FUNCTION lab_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event (at, what, session_id, lab_id, host, slot, code, detail) VALUES (
        coalesce(
            CASE NEW.state WHEN 'running' THEN NEW.running_at WHEN 'ended' THEN NEW.ended_at END, clock_timestamp()
        ),
        'lab_' || NEW.state, NEW.session_id, NEW.lab_id, NEW.host, NEW.slot, NEW.outcome_code, NEW.outcome_detail
    );
    RETURN NULL;
END $$;
CREATE TRIGGER lab_changed AFTER UPDATE OF state ON lab
FOR EACH ROW WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION lab_changed();

CREATE FUNCTION reference_acquired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event (at, what, session_id, lab_id, host, slot)
    SELECT NEW.acquired_at, 'reference_acquired', NEW.session_id, NEW.lab_id, host, slot
    FROM lab WHERE lab_id = NEW.lab_id;
    RETURN NULL;
END $$;
CREATE TRIGGER reference_acquired AFTER INSERT ON lab_reference
FOR EACH ROW EXECUTE FUNCTION reference_acquired();

CREATE FUNCTION reference_released() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event (at, what, session_id, lab_id, host, slot)
    SELECT NEW.released_at, 'reference_released', NEW.session_id, NEW.lab_id, host, slot
    FROM lab WHERE lab_id = NEW.lab_id;
    RETURN NULL;
END $$;
CREATE TRIGGER reference_released AFTER UPDATE OF released_at ON lab_reference
FOR EACH ROW WHEN (OLD.released_at IS NULL AND NEW.released_at IS NOT NULL) EXECUTE FUNCTION reference_released();

-- The server sets reason, time and source together; an operator may set only the reason.
CREATE FUNCTION lab_host_complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.quarantine_reason IS NULL THEN
        NEW.quarantined_by := NULL;
        NEW.quarantined_at := NULL;
    ELSIF NEW.quarantined_by IS NULL OR NEW.quarantined_at IS NOT DISTINCT FROM OLD.quarantined_at THEN
        NEW.quarantined_by := 'operator';
        NEW.quarantined_at := clock_timestamp();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER lab_host_complete BEFORE UPDATE OF quarantine_reason ON lab_host
FOR EACH ROW WHEN (NEW.quarantine_reason IS DISTINCT FROM OLD.quarantine_reason) EXECUTE FUNCTION lab_host_complete();

CREATE FUNCTION lab_host_quarantined() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.quarantine_reason IS NULL THEN
        INSERT INTO event (at, what, host, code, detail)
        VALUES (clock_timestamp(), 'quarantine_lifted', NEW.name, OLD.quarantined_by, OLD.quarantine_reason);
    ELSE
        INSERT INTO event (at, what, host, code, detail)
        VALUES (NEW.quarantined_at, 'quarantine_set', NEW.name, NEW.quarantined_by, NEW.quarantine_reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER lab_host_quarantined AFTER UPDATE OF quarantine_reason ON lab_host
FOR EACH ROW WHEN (NEW.quarantine_reason IS DISTINCT FROM OLD.quarantine_reason) EXECUTE FUNCTION lab_host_quarantined();

CREATE FUNCTION event_unchanged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE check_violation USING MESSAGE = 'constraint failed: an event is never changed';
END $$;
CREATE TRIGGER event_unchanged BEFORE UPDATE ON event
FOR EACH STATEMENT EXECUTE FUNCTION event_unchanged();

-- The servers listen. PostgreSQL says which connection has written, so that a server can ignore its own changes. The payload
-- says what may have changed: one session, hosts or slots, or (empty) anything. Ended sessions are of no interest, nor are signs
-- of life of hosts and sessions.
CREATE FUNCTION notify_servers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('neops_remote_lab', TG_ARGV[0]);
    RETURN NULL;
END $$;
CREATE FUNCTION notify_servers_of_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(
        'neops_remote_lab',
        CASE WHEN length(id) < 1000 THEN 'session ' || id ELSE '' END  -- a payload has less than 8000 bytes
    )
    FROM (VALUES (OLD.session_id, OLD.state), (NEW.session_id, NEW.state)) AS changed (id, state)
    WHERE state <> 'ended';
    RETURN NULL;
END $$;
CREATE TRIGGER session_notify AFTER INSERT OR DELETE OR UPDATE OF
    session_id, queue, rank, state, host, slot, client, purpose, created_at, activated_at ON session
FOR EACH ROW EXECUTE FUNCTION notify_servers_of_session();
CREATE TRIGGER session_notify_truncated AFTER TRUNCATE ON session
FOR EACH STATEMENT EXECUTE FUNCTION notify_servers('');
CREATE TRIGGER lab_host_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF
    queue, address, state, is_draining, holds_grants, epoch, quarantine_reason ON lab_host
FOR EACH STATEMENT EXECUTE FUNCTION notify_servers('hosts');
CREATE TRIGGER slot_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON slot
FOR EACH STATEMENT EXECUTE FUNCTION notify_servers('hosts');
