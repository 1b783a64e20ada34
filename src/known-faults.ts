import type { Fault } from './errors.ts';

/** What to tell a person about an error that is expected. */
export interface KnownFault<S> {
  /** Whether no retry can fix it, if it stays. */
  fatal: boolean;
  /** @param at host and port of what failed, for people */
  text: (at: string, situation: S) => string;
}

/** Functions that make known faults: `fatal` if no retry can fix the error, `passing` if it may go away by itself. */
export function knownFaults<S>(): Record<
  'fatal' | 'passing',
  (text: KnownFault<S>['text']) => KnownFault<S>
> {
  return {
    fatal: (text) => ({ fatal: true, text }),
    passing: (text) => ({ fatal: false, text }),
  };
}

/** A table of known faults, each entry with the codes that it is for. */
export function byCode<S>(
  ...entries: [fault: KnownFault<S>, ...codes: string[]][]
): Map<string, KnownFault<S>> {
  return new Map(entries.flatMap(([fault, ...codes]) => codes.map((code) => [code, fault] as const)));
}

/** A known fault in its situation; undefined if the fault is not known. */
export function faultAt<S>(known: KnownFault<S> | undefined, at: string, situation: S): Fault | undefined {
  return known === undefined ? undefined : { text: known.text(at, situation), fatal: known.fatal };
}

/** Node's codes for a host that does not answer. */
export const NO_ANSWER_CODES = ['ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN'];

/** Node's codes for a certificate of an authority that Node does not trust. */
export const UNTRUSTED_CERTIFICATE_CODES = [
  'SELF_SIGNED_CERT_IN_CHAIN',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'CERT_UNTRUSTED',
];
