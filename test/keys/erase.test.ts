import { expect, test } from 'vitest';
import { type TestDatabase } from '../support/database.ts';
import {
  distinct,
  expectAllReveal,
  load,
  loadBeforeEach,
  maskedLogins,
  openTransaction,
  request,
  reveal,
  revealAll,
  untilBlocked,
  type Login,
} from '../support/keys.ts';
import { sqlstate } from '../support/sqlstate.ts';
import { event, maskAll, message, stage } from '../support/staging.ts';

/** Ann shares an address with Bob. Nobody shares her device. */
const LOGINS: Login[] = [
  { user: 'ann', ip: '10.0.0.1', device: 'ann-only' },
  { user: 'ann', ip: '10.0.0.2', device: 'ann-only' },
  { user: 'ann', ip: '10.0.0.1', device: null },
  { user: 'ann', ip: null, device: null },
  { user: 'bob', ip: '10.0.0.1', device: 'bob-only' },
  { user: 'bob', ip: '10.0.0.3', device: 'shared' },
];

let db: TestDatabase;
let sent: Map<string, Login>;
loadBeforeEach(LOGINS, (loaded) => ({ db, sent } = loaded));

const erase = async (user: string | null, reason: string | null = 'DSR-1'): Promise<string> =>
  (await db.pool('custodian').query('select masking.erase_user($1, $2) as id', [user, reason])).rows[0].id;
const eraseStep = async (rows = 500): Promise<boolean> =>
  (await db.pool('worker').query('select more from masking.erase_step(max_rows => $1)', [rows])).rows[0].more;
async function eraseAll(rows = 500): Promise<number> {
  for (let steps = 1; steps < 100; steps += 1) if (!(await eraseStep(rows))) return steps;
  throw new Error('the erasure does not end');
}
const erasures = async () =>
  (
    await db.superuser.query(
      `select phase, logins_cleared::int as logins, values_erased::int as values, bodies_erased::int as bodies
         from masking.erasures order by erasure_id`,
    )
  ).rows;
const shownErasures = async () =>
  (await db.pool('auditor').query('select erasures from staging.status()')).rows[0].erasures;
/** A body that is quarantined for its address. */
const body = (user: unknown) => JSON.stringify({ user_id: user, ip: 7, device_id: 'x' });
const quarantined = async () =>
  (await db.superuser.query('select message_id as id from staging.quarantine')).rows;
const of = (user: string) => async () => (await maskedLogins(db)).filter((login) => login.user === user);
const [ann, bob] = [of('ann'), of('bob')];
const bobs = () => new Map([...sent].filter(([, { user }]) => user === 'bob'));
const expectBobWhole = async () => {
  const seen = (await bob()).map(({ id }) => id).sort();
  expect(seen).toEqual([...bobs().keys()].sort());
  const shown = await revealAll(db, 'ip', distinct((await bob()).map(({ ip }) => ip)));
  expect([...shown.values()].sort()).toEqual(['10.0.0.1', '10.0.0.3']);
};

test('an erasure clears all tokens of a user, keeps the logins, and changes no others', async () => {
  const others = await bob();
  await erase('ann');
  await eraseAll();
  expect((await ann()).map(({ id, ip, device }) => [id, ip, device]).sort()).toEqual(
    [...sent].filter(([, { user }]) => user === 'ann').map(([id]) => [id, null, null]).sort(),
  ); // prettier-ignore
  expect(await bob()).toEqual(others);
  await expectBobWhole();
});

test('an erasure deletes the values that only the user had, and keeps shared values', async () => {
  const before = await ann();
  const own = distinct(before.map(({ device }) => device));
  const addresses = distinct(before.map(({ ip }) => ip));
  const earlier = await request(db, 'ip', addresses);
  const [device] = [await request(db, 'device_id', own)];
  await erase('ann');
  await eraseAll();
  expect(await erasures()).toMatchObject([{ phase: 'done', logins: 3, values: 2, bodies: 0 }]);
  // An earlier request reveals only shared values, and is refused if it has none.
  expect([...(await reveal(db, earlier)).values()]).toEqual(['10.0.0.1']);
  expect(await sqlstate(reveal(db, device))).toBe('ML107');
  expect(await sqlstate(request(db, 'device_id', own))).toBe('ML107');
  expect([...(await revealAll(db, 'ip', addresses)).values()]).toEqual(['10.0.0.1']);
});

test('an erased user cannot be requested, and find returns nothing for their values', async () => {
  await erase('ann');
  await eraseAll();
  const asUser = db.pool('unmasker').query(`select unmask.request_user('ann', reason => 'a test')`);
  expect(await sqlstate(asUser)).toBe('ML110');
  await db.pool('unmasker').query(`select unmask.request_find('device_id', 'ann-only', reason => 'a test')`);
  const found = db.pool('unmasker').query(`select unmask.find('device_id', 'ann-only')`);
  expect((await found).rows).toEqual([]);
});

test('an erasure deletes the quarantined messages of the user and keeps all others', async () => {
  const theirs = [message(body('ann')), message(body('ann'))];
  const others = [
    message(body('bob')),
    message(body(null)),
    message('no JSON'),
    message('[]'),
    message('"ann"'),
  ];
  await maskAll(db, [...theirs, ...others]);
  await erase('ann');
  await eraseAll(10);
  expect((await quarantined()).map(({ id }) => id).sort()).toEqual(others.map(({ id }) => id).sort());
  expect(await erasures()).toMatchObject([{ bodies: 2 }]);
});

test('any step of an erasure can be rolled back or killed, and is repeated', async () => {
  await maskAll(db, [message(JSON.stringify({ user_id: 'ann', ip: 7 }))]);
  await erase('ann');
  for (let more = true, n = 0; more; n += 1) {
    const { client, pid } = await openTransaction(db.pool('worker'));
    const before = [await erasures(), await maskedLogins(db)];
    await client.query('select masking.erase_step(max_rows => 1)');
    await (n % 2 === 0
      ? client.query('rollback')
      : db.superuser.query('select pg_terminate_backend($1, 10000)', [pid]));
    client.release();
    expect([await erasures(), await maskedLogins(db)]).toEqual(before);
    more = await eraseStep(1);
  }
  expect(await erasures()).toEqual([{ phase: 'done', logins: 3, values: 2, bodies: 1 }]);
  await expectBobWhole();
});

test('two workers that step concurrently erase each login once', async () => {
  await erase('ann');
  await erase('bob');
  const worker = async () => {
    for (let n = 0; n < 100 && (await erasures()).some(({ phase }) => phase !== 'done'); n += 1)
      await eraseStep(1);
  };
  await Promise.all([worker(), worker()]);
  expect(await erasures()).toMatchObject([{ logins: 3 }, { logins: 2 }]);
  expect((await db.superuser.query('select from masking.vault')).rowCount).toBe(0);
});

test('status shows a running erasure without its user', async () => {
  await erase('ann');
  await eraseStep(1);
  expect(await shownErasures()).toEqual([{ erasure_id: 1, phase: 'logins', logins: 1 }]);
  await eraseAll();
  expect(await shownErasures()).toEqual([]);
});

test('logins that arrive after an erasure are masked with the same tokens as before', async () => {
  const before = (await ann()).find(({ device }) => device !== null)!.device;
  await erase('ann');
  const late = await load(db, [{ user: 'ann', ip: '10.0.0.2', device: 'ann-only' }]);
  await eraseAll();
  const login = (await ann()).find(({ id }) => late.has(id));
  expect(login!.device).toBe(before);
  expect([...(await revealAll(db, 'device_id', [login!.device!])).values()]).toEqual(['ann-only']);
  await erase('ann');
  await eraseAll();
  expect(distinct((await ann()).flatMap(({ ip, device }) => [ip, device]))).toEqual([]);
});

test('an erasure, its reason and its outcome are in the audit log', async () => {
  await erase('ann', '  DSR-4711 ');
  await eraseAll();
  const { rows } = await db
    .pool('auditor')
    .query(`select actor, action, details from audit.events where action like 'erase%' order by event_id`);
  expect(rows).toEqual([
    {
      actor: 'local_custodian', action: 'erase user', details: { erasure_id: 1, user_id: 'ann', reason: 'DSR-4711' },
    }, // prettier-ignore
    {
      actor: 'local_worker', action: 'erased user', details: { erasure_id: 1, logins: 3, values: 2, bodies: 0 },
    }, // prettier-ignore
  ]);
});

test('an erasure needs a user, a reason and a custodian', async () => {
  for (const [user, reason] of [
    [null, 'x'],
    ['', 'x'],
    ['ann', ' '],
    ['ann', null],
  ] as const) {
    expect(await sqlstate(erase(user, reason))).toBe('ML110');
  }
  for (const login of ['worker', 'analyst', 'unmasker', 'approver', 'auditor'] as const) {
    expect(await sqlstate(db.pool(login).query(`select masking.erase_user('ann', 'x')`))).toBe('42501');
  }
  expect(await sqlstate(db.pool('custodian').query('select masking.erase_step()'))).toBe('42501');
});

test('the erasure of an unknown user completes and changes nothing', async () => {
  await erase('nobody');
  await eraseAll();
  expect(await erasures()).toEqual([{ phase: 'done', logins: 0, values: 0, bodies: 0 }]);
  await expectAllReveal(db, sent);
});

test('an erasure waits for a batch that is being masked, and erases its logins too', async () => {
  const batchId = await stage(db, [
    message(event({ user_id: 'dee', ip: '10.0.0.1', device_id: 'dee-only' })),
  ]);
  const batch = await openTransaction(db.pool('worker'));
  await batch.client.query('select masking.mask_batch($1)', [batchId]);
  await erase('dee');
  const erasing = await openTransaction(db.pool('worker'));
  const erased = erasing.client.query('select masking.erase_step()');
  await untilBlocked(db, erasing.pid);
  await batch.client.query('commit');
  await erased;
  await erasing.client.query('commit');
  for (const { client } of [batch, erasing]) client.release();
  await eraseAll();
  expect(await of('dee')()).toMatchObject([{ ip: null, device: null }]);
  expect(await erasures()).toMatchObject([{ logins: 1, values: 1 }]);
  await expectBobWhole();
});

test('a batch with a value that is being erased waits, and encrypts the value again', async () => {
  await erase('ann');
  const erasing = await openTransaction(db.pool('worker'));
  await erasing.client.query('select masking.erase_step()');
  const newcomer = message(event({ user_id: 'cyd', ip: '10.0.0.2', device_id: 'ann-only' }));
  const batch = await openTransaction(db.pool('worker'));
  const masked = batch.client.query('select masking.mask_batch($1)', [await stage(db, [newcomer])]);
  await untilBlocked(db, batch.pid);
  await erasing.client.query('commit');
  await masked;
  await batch.client.query('commit');
  for (const { client } of [batch, erasing]) client.release();
  const login = (await maskedLogins(db)).find(({ id }) => id === newcomer.id)!;
  expect([...(await revealAll(db, 'device_id', [login.device!])).values()]).toEqual(['ann-only']);
  expect([...(await revealAll(db, 'ip', [login.ip!])).values()]).toEqual(['10.0.0.2']);
});

test('a damaged body in quarantine does not stop erasures', async () => {
  await maskAll(db, [message('no JSON')]);
  await db.superuser.query(`update staging.quarantine set body = substr(body, 1, 20)`);
  await erase('ann');
  expect(await sqlstate(eraseAll())).toBe('none');
});
