#!/usr/bin/env node
/** Starts src/cli/main.ts, or in the package, which has no TypeScript, what it was compiled to. */
import { existsSync } from 'node:fs';
import './requirements.js';

const source = new URL('../src/cli/main.ts', import.meta.url);
await import(existsSync(source) ? source.href : new URL('../dist/src/cli/main.js', import.meta.url).href);
