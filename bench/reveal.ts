import pg from 'pg';
import { timeMasking } from './batches.ts';
import { withBenchStack, type BenchStack } from './bench-stack.ts';
import { inTurns, median, medianRatio, timed, type Result } from './benchmark.ts';

const VALUES = 10_000;
const ROUNDS = 11;
/** The maximum ratio of a reveal to the decryption alone. */
const MAX_RATIO = 10;

/**
 * Compares revealing 10,000 values with decrypting the same ciphertexts by `pgp_sym_decrypt_bytea` alone. Each uses one
 * session.
 */
export function reveal(): Promise<Result> {
  return withBenchStack(async (stack) => {
    const unmasker = new pg.Client({ connectionString: stack.file.urls.unmasker });
    await unmasker.connect();
    try {
      return await compare(stack, unmasker);
    } finally {
      await unmasker.end();
    }
  });
}

async function compare(stack: BenchStack, unmasker: pg.Client): Promise<Result> {
  const { superuser } = stack;
  const bodies = Array.from({ length: VALUES }, (_, n) =>
    JSON.stringify({ user_id: `user-${n}`, ip: `10.0.${n >> 8}.${n & 255}` }),
  );
  await timeMasking(stack, bodies);
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
  const request = async (): Promise<string> => {
    const { rows } = await unmasker.query<{ id: string }>(
      `select unmask.request('ip', $1, reason => 'a benchmark') as id`,
      [tokens],
    );
    // A reveal within a second after its request may wait for WAL, which is not part of the cost of revealing.
    await superuser.query('select pg_sleep(1)');
    return rows[0]!.id;
  };

  const { revealing, fetching, bare } = await inTurns(ROUNDS, {
    revealing: async () => {
      const id = await request();
      return timed(() =>
        expectRows(unmasker.query('select count(value) as rows from unmask.reveal($1)', [id])),
      );
    },
    fetching: async () => {
      const id = await request();
      return timed(() => unmasker.query('select * from unmask.reveal($1)', [id]));
    },
    bare: () =>
      timed(() =>
        expectRows(
          superuser.query(
            `select count(crypto.pgp_sym_decrypt_bytea(v.ciphertext, $1)) as rows
               from masking.vault v where v.token = any ($2)`,
            [keys[0]!.password, tokens],
          ),
        ),
      ),
  });
  return {
    how: `${VALUES} values, ${ROUNDS} rounds, one connection each`,
    postgres: stack.version,
    targets: [
      { measure: 'reveal ÷ decryption alone (ms)', value: medianRatio(revealing, bare), atMost: MAX_RATIO },
    ],
    figures: {
      'reveal (ms)': median(revealing),
      'reveal and fetch the rows (ms)': median(fetching),
      'pgp_sym_decrypt_bytea alone (ms)': median(bare),
      'reveal (µs per value)': (median(revealing) * 1000) / VALUES,
    },
  };
}

async function expectRows(call: Promise<pg.QueryResult<{ rows: string }>>): Promise<void> {
  const { rows } = await call;
  if (Number(rows[0]?.rows) !== VALUES) throw new Error('not every value was decrypted');
}
