import { readFileSync } from 'node:fs';
import { baseBackup } from './base-backup.ts';
import { Scanner, type Canaries } from './needles.ts';
import { filePlaces, sqlPlaces, type Place } from './places.ts';
import type { World } from './world.ts';

/**
 * Searches for canaries in every place where they must not be.
 *
 * @returns `place: canary` for each canary that was found, sorted
 */
export async function scan(world: World, canaries: Canaries = world.canaries.all): Promise<string[]> {
  const scanner = new Scanner(canaries);
  const found = new Set<string>();
  for await (const { place, bytes } of everywhere(world)) {
    for (const name of scanner.namesIn(bytes)) found.add(`${place}: ${name}`);
  }
  return [...found].sort();
}

async function* everywhere(world: World): AsyncGenerator<Place> {
  yield* sqlPlaces(world.db.superuser);
  yield* filePlaces(world.db.superuser, world.dataDirectory);
  yield { place: 'base backup', bytes: await baseBackup(world.postgres.url('postgres')) };
  yield* world.recorder.places();
  yield { place: 'output of commands', bytes: Buffer.from(world.printed()) };
  // The log comes last, so that it includes what the scan itself did.
  const log = readFileSync(world.logFile, 'latin1').split(ENTRY);
  yield {
    place: 'server log',
    bytes: Buffer.from(log.filter((entry) => !isPlan(entry)).join('\n'), 'latin1'),
  };
  yield { place: PLANS, bytes: Buffer.from(log.filter(isPlan).join('\n'), 'latin1') };
}

/** The name of the entries that auto_explain writes to the server's log. */
export const PLANS = 'plans in the server log';
const isPlan = (entry: string): boolean => /^.{0,200}duration: [\d.]+ ms  plan:/.test(entry);
const ENTRY = /^(?=\d{4}-\d\d-\d\d [\d:.]+ UTC \[)/m;
