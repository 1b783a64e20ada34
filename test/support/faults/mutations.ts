import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { killAt, MOMENTS } from './kills.ts';
import { FaultError } from './protocol.ts';
import type { SeedOptions } from './run-seed.ts';
import type { Step } from './schedule.ts';
import type { World } from './world.ts';

/** A deliberate defect, with the faults that reveal it. */
interface Mutation {
  workerPreloads?: string[];
  prepare?: (world: World) => Promise<void>;
  steps: Step[];
  queueFaults?: string[];
}

const moment = (name: string) => MOMENTS.find((each) => each.name === name)!;

export const MUTATIONS: Record<string, Mutation> = {
  /** The worker deletes from SQS before masking has committed. A crash in between loses the batch. */
  'delete-before-commit': {
    workerPreloads: [pathToFileURL(path.join(import.meta.dirname, 'delete-first.ts')).href],
    steps: [
      {
        name: 'kill Postgres while masking',
        run: (world) => killAt(world, moment('while masking'), 'Postgres'),
      },
    ],
  },
  /** Loading has no ON CONFLICT clause. A message that SQS delivers twice fails. */
  'no-on-conflict': {
    prepare: async (world) => {
      await rewrite(
        world,
        'mask_rows',
        /(order by m\.user_id, m\.sent_at, m\.message_id\s+)on conflict do nothing/,
      );
      // Otherwise the batch fails, and its messages are delivered again in different batches, where they succeed.
      await rewrite(world, 'mask_one_by_one', /left_to_quarantine < 0 or (masking\.probe)/);
    },
    steps: [{ name: 'traffic', run: ({ traffic }) => traffic.send(400) }],
    queueFaults: ['sqs duplicated delivery', 'sqs duplicated delivery'],
  },
};

/** The options of a run with a defect. Such a run must fail. */
export function mutated(name: string, plain: SeedOptions): SeedOptions {
  const mutation = MUTATIONS[name];
  if (mutation === undefined) throw new FaultError(`unknown mutation ${name}`);
  const queueFaults = (mutation.queueFaults ?? []).map((kind) => ({
    operation: 'ReceiveMessage' as const,
    kind,
    skip: 0,
  }));
  return {
    ...plain,
    messages: 300,
    schedule: { steps: mutation.steps, queueFaults },
    ...(mutation.workerPreloads && { workerPreloads: mutation.workerPreloads }),
    ...(mutation.prepare && { prepare: mutation.prepare }),
  };
}

/** Removes what the pattern matches, except for its first group, from a function of schema masking. */
async function rewrite({ superuser }: World, name: string, pattern: RegExp): Promise<void> {
  const { rows } = await superuser.query<{ definition: string }>(
    `select pg_get_functiondef(p.oid) as definition from pg_proc p
      where p.pronamespace = 'masking'::regnamespace and p.proname = $1`,
    [name],
  );
  const before = rows[0]!.definition;
  const after = before.replace(pattern, '$1');
  if (after === before) throw new FaultError(`the text of masking.${name} is not as expected`);
  await superuser.query(after);
}
