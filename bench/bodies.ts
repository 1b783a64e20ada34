import { loginEvents } from '../local/send/events.ts';

/** The share of new values in a batch of mostly known values. */
export const MOSTLY_KNOWN = 0.02;

/** The number of known devices and of known addresses. */
const KNOWN = 20_000;

interface Values {
  ip: string;
  device_id: string;
}

/** Generates login events. A chosen share of their values is new, and the vault knows the others. */
export class Bodies {
  readonly #events = loginEvents({ seed: 'bench', duplicates: 0, malformed: 0 });
  readonly #known: Values[] = [];
  #newDevices = 0;

  /** Bodies with all known values, to be masked before the measurement. */
  known(): string[] {
    const bodies = Array.from({ length: KNOWN }, () => this.#events.next().value);
    this.#known.push(...bodies.map((body) => JSON.parse(body) as Values));
    return bodies;
  }

  /** @param share the share of new values, from 0 to 1 */
  take(rows: number, share: number): string[] {
    return Array.from({ length: rows }, () => {
      const event = JSON.parse(this.#events.next().value) as Values;
      if (Math.random() >= share) event.ip = this.#pickKnown().ip;
      if (Math.random() >= share) event.device_id = this.#pickKnown().device_id;
      // The generator repeats device ids, so a number is appended.
      else event.device_id = `${event.device_id}-${this.#newDevices++}`;
      return JSON.stringify(event);
    });
  }

  #pickKnown(): Values {
    return this.#known[Math.floor(Math.random() * KNOWN)]!;
  }
}
