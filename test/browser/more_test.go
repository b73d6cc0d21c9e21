package browser

import "testing"

func TestD3_TerminalOutlastsOutputSizesAndCuts(t *testing.T) { alone(t, "terminal") }

func TestD3_FilesManyOddAndLarge(t *testing.T) { beside(t, "files") }

func TestDA01_LongListsAndChangesStayQuick(t *testing.T) { alone(t, "lists") }

func TestD6_DA01_WhatHappensIsSeenInEveryTab(t *testing.T) { alone(t, "live") }

func TestD1_HostileNamesStayText(t *testing.T) { beside(t, "hostile") }

func TestD1_FirstLoadIsSmallAndFromHereAlone(t *testing.T) { beside(t, "load") }

func TestDA03_EveryPageAsEverybody(t *testing.T) { beside(t, "roles") }
