/** What to tell a person about an error that is known beforehand, once it is known where and in what situation it came. */
export interface KnownFault<S> {
  /** Whether no retry heals it, if it stays. */
  fatal: boolean;
  /** @param at host and port of what failed, for people */
  text: (at: string, situation: S) => string;
}

/** Makers for a table of errors: `fatal` for what no retry heals, `passing` for what may heal by itself. */
export function knownFaults<S>(): Record<
  'fatal' | 'passing',
  (text: KnownFault<S>['text']) => KnownFault<S>
> {
  return {
    fatal: (text) => ({ fatal: true, text }),
    passing: (text) => ({ fatal: false, text }),
  };
}
