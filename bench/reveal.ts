import { randomUUID } from 'node:crypto';
import { mkdtempSync, chmodSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import { bytea, copyIn, encodeRows, int4, text, timestamptz, uuid } from '../src/database/copy.ts';
import { readKek, unseal } from '../src/database/kek.ts';
import { createPool } from '../src/database/pool.ts';
import { removeData, startStack } from '../src/local/stack.ts';
import { createLogger } from '../src/log.ts';
import { median, rounded, timed, type Result } from './benchmark.ts';

const VALUES = 10_000;
const ROUNDS = 11;
/** A reveal has to take less than this many times the bare decryption. */
const MOST = 10;

/**
 * Reveals 10,000 values, against the bare `pgp_sym_decrypt_bytea` of the same ciphertexts with the key at hand. In
 * turns, so that whatever else the machine does is shared out; in one session each, and medians.
 */
export async function reveal(): Promise<Result> {
  const localDir = mkdtempSync(path.join(tmpdir(), 'masked-logins-bench-'));
  chmodSync(localDir, 0o711);
  const stack = await startStack({ localDir, persistent: false, log: createLogger('silent') });
  const superuser = new pg.Client({ connectionString: stack.file.urls.superuser });
  const unmasker = new pg.Client({ connectionString: stack.file.urls.unmasker });
  try {
    await superuser.connect();
    await unmasker.connect();
    await loadValues(stack.file.urls, stack.file.kekFile);
    await superuser.query(
      'update unmask.policy set approval_above = values_per_request, values_per_day = 1000000000',
    );
    await superuser.query('vacuum analyze masking.vault');
    const { rows: logins } = await unmasker.query<{ token: string }>(
      'select masked_ip as token from public.user_logins',
    );
    const tokens = logins.map(({ token }) => token);
    const { rows: keys } = await superuser.query<{ password: string }>(
      `select encode(key, 'hex') as password from masking.active_key('cipher', 'ip')`,
    );
    const { rows: versions } = await superuser.query<{ version: string }>(
      `select current_setting('server_version') as version`,
    );

    const revealing: number[] = [];
    const fetching: number[] = [];
    const bare: number[] = [];
    for (let round = 0; round <= ROUNDS; round += 1) {
      const { rows } = await unmasker.query<{ id: string }>(
        `select unmask.request('ip', $1, reason => 'a benchmark') as id`,
        [tokens],
      );
      // A reveal within a second of its request may wait for WAL, which is no cost of revealing.
      await superuser.query('select pg_sleep(1)');
      const revealed = await timed(() =>
        expectRows(unmasker.query('select count(value) as rows from unmask.reveal($1)', [rows[0]!.id])),
      );
      const decrypted = await timed(() =>
        expectRows(
          superuser.query(
            `select count(crypto.pgp_sym_decrypt_bytea(v.ciphertext, $1)) as rows
               from masking.vault v where v.token = any ($2)`,
            [keys[0]!.password, tokens],
          ),
        ),
      );
      const fetched = await timed(() => unmasker.query('select * from unmask.reveal($1)', [rows[0]!.id]));
      // The first round warms caches.
      if (round > 0) {
        revealing.push(revealed);
        bare.push(decrypted);
        fetching.push(fetched);
      }
    }
    const ratio = median(revealing) / median(bare);
    return {
      postgres: versions[0]!.version,
      accepted: ratio < MOST,
      figures: {
        values: VALUES,
        rounds: ROUNDS,
        'reveal over bare decryption (times)': rounded(ratio),
        'reveal (ms)': rounded(median(revealing)),
        'reveal and fetch the rows (ms)': rounded(median(fetching)),
        'bare pgp_sym_decrypt_bytea (ms)': rounded(median(bare)),
        'reveal (µs a value)': rounded((median(revealing) * 1000) / VALUES),
      },
    };
  } finally {
    await superuser.end();
    await unmasker.end();
    await stack.stop();
    await removeData(localDir);
    rmSync(localDir, { recursive: true, force: true });
  }
}

/** So many logins, each with an address of its own, by the way that they always come. */
async function loadValues(urls: { loader: string; worker: string }, kekFile: string): Promise<void> {
  const loader = new pg.Client({ connectionString: urls.loader });
  const worker = createPool(urls.worker, { max: 1, applicationName: 'masked-logins bench' });
  await loader.connect();
  try {
    await unseal(worker, await readKek({ file: kekFile }));
    const batchId = randomUUID();
    const rows = Array.from({ length: VALUES }, (_, n) => {
      const body = JSON.stringify({ user_id: `user-${n}`, ip: `10.0.${n >> 8}.${n & 255}` });
      return [batchId, randomUUID(), '', Date.now(), 1, body] as const;
    });
    await loader.query('begin');
    await copyIn(
      loader,
      `copy staging.inbox (batch_id, message_id, receipt_handle, sent_at, receive_count, body)
         from stdin (format binary)`,
      encodeRows([uuid, uuid, text, timestamptz, int4, bytea], rows),
    );
    await loader.query('select staging.submit_batch($1, $2)', [batchId, VALUES]);
    await loader.query('commit');
    await worker.query('select from masking.mask_batch($1)', [batchId]);
    await worker.query('select staging.close_batch($1)', [batchId]);
  } finally {
    await loader.end();
    await worker.end();
  }
}

async function expectRows(call: Promise<pg.QueryResult<{ rows: string }>>): Promise<void> {
  const { rows } = await call;
  if (Number(rows[0]?.rows) !== VALUES) throw new Error('not every value was decrypted');
}
